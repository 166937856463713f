"""Tests of the validation of predictions, which comes before their time counts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.outputs import WrongOutput, require_same_numbers
from benchmarks.photographs import Photographs, write
from benchmarks.predictions import OTHER_PIXELS, SAME_PIXELS, Answers, Tolerance, answers_in, require_agreement

COUNT = 250


def answers(labels: str = "roses") -> Answers:
    return {number: (labels, np.array([0.25, 0.75])) for number in range(COUNT)}


def other(own: Answers, *answered: tuple[str, list[float]]) -> Answers:
    """The same predictions, except for some of them."""
    return own | {number: (label, np.array(of)) for number, (label, of) in enumerate(answered)}


@pytest.mark.parametrize(
    ("tolerance", "answered"),
    [
        (SAME_PIXELS, [("tulips", [0.25, 0.75]), ("roses", [0.2495, 0.7505])]),
        (OTHER_PIXELS, [("tulips", [0.75, 0.25])] * 5),
    ],
)
def test_answers_may_differ_a_little(tolerance: Tolerance, answered: list[tuple[str, list[float]]]) -> None:
    require_agreement(other(answers(), *answered), answers(), tolerance)


@pytest.mark.parametrize(
    ("tolerance", "answered", "message"),
    [
        (SAME_PIXELS, [("tulips", [0.25, 0.75])] * 2, "99.20% of the labels"),
        (OTHER_PIXELS, [("tulips", [0.25, 0.75])] * 6, "97.60% of the labels"),
        (SAME_PIXELS, [("roses", [0.30, 0.70])], "by 0.0002 on average"),
        (OTHER_PIXELS, [("roses", [0.75, 0.25])] * 6, "by 0.012 on average"),
        (OTHER_PIXELS, [("roses", [float("nan"), 0.75])], "by nan on average"),
        (OTHER_PIXELS, [("roses", [0.25])], "1 probabilities of photograph 0"),
    ],
)
def test_other_labels_or_probabilities_do_not_count(
    tolerance: Tolerance, answered: list[tuple[str, list[float]]], message: str
) -> None:
    with pytest.raises(WrongOutput, match=message):
        require_agreement(other(answers(), *answered), answers(), tolerance)


def test_answers_are_read_by_photograph(tmp_path: Path) -> None:
    write(Photographs(small=True), tmp_path / "landing", range(3))
    rows = [
        {"path": f"file:{tmp_path}/{number:07d}.jpg", "label": "roses", "probabilities": [0.25, 0.75]}
        for number in (0, 1, 2)
    ]
    (tmp_path / "written").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "written" / "part-0.parquet")
    found = answers_in(tmp_path / "written")
    require_same_numbers([number for number, _ in found], tmp_path / "landing")
    with pytest.raises(WrongOutput, match="3 rows of 2 images"):
        require_same_numbers([0, 1, 1], tmp_path / "landing")
    require_agreement(dict(found), {number: answers()[number] for number in (0, 1, 2)}, SAME_PIXELS)
