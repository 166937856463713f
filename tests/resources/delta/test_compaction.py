"""Compaction rewrites each byte a few times however often small files come, and large files never."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.delta.table import GROWTH, MEBIBYTE, SMALL_FILES, FileSizes, plan_compaction

LIMITS = FileSizes()
LARGE = 100 * MEBIBYTE


def test_a_few_small_files_are_left_as_they_are() -> None:
    assert not plan_compaction([1000] * (SMALL_FILES - 1), LIMITS).pays
    assert plan_compaction([1000] * SMALL_FILES, LIMITS).rewritten_bytes == 1000 * SMALL_FILES
    assert not plan_compaction([], LIMITS).pays


def test_large_files_are_never_rewritten() -> None:
    compaction = plan_compaction([LARGE] * 100 + [1000] * SMALL_FILES, LIMITS)
    assert (compaction.files, compaction.small_files) == (100 + SMALL_FILES, SMALL_FILES)
    assert (compaction.rewritten_files, compaction.rewritten_bytes) == (SMALL_FILES, 1000 * SMALL_FILES)


def test_a_file_that_is_small_and_large_beside_the_others_waits() -> None:
    almost_large = 40 * MEBIBYTE
    compaction = plan_compaction([almost_large] + [1000] * SMALL_FILES, LIMITS)
    assert compaction.rewritten_bytes == 1000 * SMALL_FILES
    assert 1000 < compaction.below_bytes <= almost_large


@given(st.lists(st.integers(1, 2 * LIMITS.minimum_bytes), max_size=200))
def test_what_is_rewritten_becomes_several_times_as_large(sizes: list[int]) -> None:
    compaction = plan_compaction(sizes, LIMITS)
    taken = [size for size in sizes if size < compaction.below_bytes]
    assert (len(taken), sum(taken)) == (compaction.rewritten_files, compaction.rewritten_bytes)
    if compaction.pays:
        assert len(taken) >= SMALL_FILES
        assert max(taken) < LIMITS.minimum_bytes
        assert sum(taken) >= GROWTH * max(taken)


@pytest.mark.parametrize(("appends", "size"), [(1_000, 10_000), (20_000, 10_000), (20_000, 100_000)])
def test_many_small_appends_rewrite_each_byte_a_few_times_and_leave_few_files(appends: int, size: int) -> None:
    files: list[int] = []
    rewritten = most = 0
    for _ in range(appends):
        files.append(size)
        compaction = plan_compaction(files, LIMITS)
        if compaction.pays:
            rewritten += compaction.rewritten_bytes
            files = [file for file in files if file >= compaction.below_bytes] + [compaction.rewritten_bytes]
        most = max(most, sum(file < LIMITS.minimum_bytes for file in files))
    times = 1 + next(power for power in range(20) if size * GROWTH**power >= LIMITS.minimum_bytes)
    assert rewritten <= times * appends * size
    assert most < 2 * SMALL_FILES


@pytest.mark.parametrize(("minimum", "maximum"), [(48, 48), (0, 192), (192, 48)])
def test_sizes_that_would_rewrite_for_ever_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="at least twice"):
        FileSizes(minimum, maximum)
