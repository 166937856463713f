"""Tests of the validation of predictions, which comes before their time counts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.outputs import WrongOutput
from benchmarks.photographs import Photographs, write
from benchmarks.predictions import Answers, answers_in, require_agreement, require_answers

COUNT = 250


def answers(labels: str = "roses") -> Answers:
    return {number: (labels, np.array([0.25, 0.75])) for number in range(COUNT)}


def other(taught: Answers, *answered: tuple[str, list[float]]) -> Answers:
    """The same predictions, except for some of them."""
    return taught | {number: (label, np.array(of)) for number, (label, of) in enumerate(answered)}


def test_answers_may_differ_a_little() -> None:
    require_agreement(other(answers(), ("tulips", [0.25, 0.75]), ("roses", [0.2495, 0.7505])), answers())


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        ([("tulips", [0.25, 0.75])] * 6, "97.60% of the labels"),
        ([("roses", [0.75, 0.25])] * 6, "a probability differs by 0.0120"),
        ([("roses", [float("nan"), 0.75])], "a probability differs by nan"),
        ([("roses", [0.25])], "1 probabilities of photograph 0"),
    ],
)
def test_other_labels_or_probabilities_do_not_count(answered: list[tuple[str, list[float]]], message: str) -> None:
    with pytest.raises(WrongOutput, match=message):
        require_agreement(other(answers(), *answered), answers())


def test_every_photograph_has_one_answer(tmp_path: Path) -> None:
    write(Photographs(small=True), tmp_path / "landing", range(3))
    rows = [
        {"path": f"file:{tmp_path}/{number:07d}.jpg", "label": "roses", "probabilities": [0.25, 0.75]}
        for number in (0, 1, 2)
    ]
    (tmp_path / "written").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "written" / "part-0.parquet")
    found = answers_in(tmp_path / "written")
    require_answers(found, tmp_path / "landing", answers())
    require_answers(found, tmp_path / "landing", None)  # the recipe's own
    with pytest.raises(WrongOutput, match="3 rows of 2 images"):
        require_answers([*found[:2], found[0]], tmp_path / "landing", answers())
    with pytest.raises(WrongOutput, match="the recipe did not finish"):
        require_answers(found, tmp_path / "landing", {})
