"""Bars in parts are small pictures, whatever they show, and count everything once."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.images.charts import SHOWN_PARTS, by_label, largest, stacked_bars


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (14, 9), (200, 40)])
def test_bars_are_a_small_picture(rows: int, columns: int) -> None:
    counts = np.random.default_rng(1).integers(0, 50, (rows, columns))
    parts = pd.DataFrame(
        counts, [f"label ${row}$" for row in range(rows)], [f"a long name {n}" for n in range(columns)]
    )
    picture = stacked_bars(parts, "a title")
    assert Image.open(BytesIO(picture)).size == (900, 360)
    assert len(picture) < 100_000


def test_the_largest_parts_keep_their_order_and_the_rest_is_one() -> None:
    parts = pd.DataFrame([[number] for number in range(1, 13)], [f"label {number}" for number in range(1, 13)]).T
    found = largest(parts)
    assert [name for name, _ in found] == [*(f"label {number}" for number in range(4, 13)), "others"]
    assert found[-1][1] == [1 + 2 + 3]
    assert len(found) == SHOWN_PARTS + 1


def test_names_that_are_cut_to_the_same_stay_apart() -> None:
    parts = pd.DataFrame([[1, 2]], columns=["a very long label of roses", "a very long label of tulips"])
    assert [values for _, values in largest(parts)] == [[1], [2]]


def test_rows_are_counted_by_label_and_part_the_most_frequent_first() -> None:
    rows = pd.DataFrame({"label": ["a", "b", "b", None], "split": ["test", "test", "training", "test"]})
    counts = by_label(rows, "split", ["training", "validation", "test"])
    assert counts.index.tolist() == ["b", "a"]
    assert counts.to_numpy().tolist() == [[1, 0, 1], [0, 0, 1]]
