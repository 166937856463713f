"""Row groups are near 1 MB, alike, and dealt evenly to ranks."""

import pytest

from resources.delta.row_groups import CACHE_ROW_GROUP_BYTES, row_group_count, row_group_numbers, shard_rows


@pytest.mark.parametrize(
    ("rows", "megabytes", "ranks", "groups"),
    [
        (1, 1, 1, 1),
        (7, 1, 2, 7),  # as many as there are rows
        (1000, 1, 2, 8),  # four for each rank
        (1000, 100, 2, 100),
        (1000, 100.5, 3, 102),  # the same number for each rank
        (10, 1000, 2, 10),  # one row each: smaller is not possible
    ],
)
def test_there_are_as_many_row_groups_as_megabytes_and_four_for_each_rank(
    rows: int, megabytes: float, ranks: int, groups: int
) -> None:
    assert row_group_count(rows, int(megabytes * CACHE_ROW_GROUP_BYTES), ranks) == groups


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [4, 5, 7, 9, 17, 100, 1001])
@pytest.mark.parametrize("content_bytes", [1, 50 * CACHE_ROW_GROUP_BYTES])
def test_groups_and_shards_differ_by_one_row(rows: int, ranks: int, content_bytes: int) -> None:
    groups = row_group_count(rows, content_bytes, ranks)
    numbers = row_group_numbers(rows, groups).tolist()
    assert numbers == sorted(numbers)
    sizes = [numbers.count(group) for group in range(groups)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    shards = shard_rows([(size, 0) for size in sizes], ranks)
    assert sum(shards) == rows
    assert max(shards) - min(shards) <= 1
