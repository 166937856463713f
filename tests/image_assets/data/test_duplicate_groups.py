"""Duplicate groups: of the same photograph, of the same file, or of the same value in a column."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.photographs import to_noise
from image_assets.data.duplicate_groups import given_groups, spanning, to_bursts, to_groups, to_pairs, with_equal
from resources.delta.delta_tables import DeltaTables
from resources.duplicates import DuplicateRules, Duplicates
from tests.support.fingerprints import write_fingerprints
from tests.support.shots import EDITS, compressed, part_under_a_camera
from tests.support.tables import tables_at


def groups(delta_tables: DeltaTables, images: pd.DataFrame, rules: DuplicateRules, new: int | None = None) -> list[int]:
    is_new = np.arange(len(images)) >= len(images) - (len(images) if new is None else new)
    return to_groups(len(images), to_pairs(delta_tables, images, is_new, rules)).tolist()


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[DeltaTables, pd.DataFrame]:
    """Two photographs, a crop and a mirror image of the first, a copy of the second, two without a fingerprint."""
    tables = tables_at(tmp_path)
    first, second = to_noise(0), to_noise(1)
    edits = {"c": EDITS["cropped"](first), "d": EDITS["mirrored"](first), "e": second}
    return tables, write_fingerprints(tables, {"a": first, "b": second, **edits, "f": None, "g": None})


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [("near", [0, 1, 0, 0, 1, 2, 3]), ("exact", [0, 1, 2, 3, 1, 4, 5]), ("off", [0, 1, 2, 3, 4, 5, 6])],
)
def test_the_rule_decides_what_is_grouped(
    photographs: tuple[DeltaTables, pd.DataFrame], duplicates: Duplicates, expected: list[int]
) -> None:
    assert groups(*photographs, DuplicateRules(duplicates=duplicates)) == expected


def test_a_new_edit_joins_the_group_of_an_existing_photograph(photographs: tuple[DeltaTables, pd.DataFrame]) -> None:
    tables, images = photographs
    in_order = images.iloc[[1, 2, 4, 0]].reset_index(drop=True)  # of these, only the original of the crop is new
    assert groups(tables, in_order, DuplicateRules(), new=1) == [0, 1, 0, 1]
    assert groups(tables, in_order, DuplicateRules(), new=0) == [0, 1, 0, 2], "existing ones were compared before"


def test_of_many_copies_and_lookalikes_only_the_copies_are_grouped(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    photograph = to_noise(0)
    others = [part_under_a_camera(number, scratched=False, ground="gradient") for number in range(4)]
    images = {f"copy {number}": compressed(photograph, 80 + number) for number in range(12)}
    images |= {f"other {number}": other for number, other in enumerate(others)}
    found = groups(tables, write_fingerprints(tables, images), DuplicateRules())
    assert found == [0] * 12 + [1, 2, 3, 4]


def test_pairs_that_span_groups_have_no_cycle_and_come_first() -> None:
    assert spanning(np.array([0, 1, 2, 0, 5]), np.array([1, 2, 0, 1, 4])).tolist() == [0, 1, 4]
    assert spanning(np.array([3, 3, 2, 3]), np.array([1, 2, 1, 1])).tolist() == [0, 1]


def test_images_with_the_same_value_in_a_column_are_grouped(photographs: tuple[DeltaTables, pd.DataFrame]) -> None:
    tables, images = photographs
    more = pd.concat([images, write_fingerprints(tables, {"a2": to_noise(7)})], ignore_index=True)
    by_format = DuplicateRules(duplicates="off", group_by="format")  # the first letter of the name
    assert groups(tables, more, by_format) == [0, 1, 2, 3, 4, 5, 6, 0]


def test_a_column_that_is_not_there_is_named(photographs: tuple[DeltaTables, pd.DataFrame]) -> None:
    tables, images = photographs
    with pytest.raises(ValueError, match="IMAGE_ASSETS_GROUP_BY is 'part', but no image has a value.*IMAGE_ASSETS_LAB"):
        given_groups(tables, images, "part")


def test_photographs_that_follow_each_other_closely_are_a_burst() -> None:
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    times = pd.Series([start + timedelta(seconds=seconds) for seconds in (9, 0, 4, 60, 62)] + [None])
    bursts = to_bursts(times)
    assert to_groups(6, with_equal(bursts)).tolist() == [0, 0, 0, 1, 1, 2]


def test_nothing_is_equal_to_a_null() -> None:
    assert with_equal(pd.Series(["a", None, "b", "a", None])).T.tolist() == [[0, 3]]
