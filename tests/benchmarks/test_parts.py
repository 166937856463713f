"""Tests of the timing of parts, which excludes nested parts."""

import time

import pytest

from benchmarks.parts import Clock
from image_assets.schemas import RAW_IMAGES


def test_a_part_is_timed_without_those_inside_it_under_its_table() -> None:
    clock = Clock()
    append = clock.timed(lambda table: time.sleep(0.02), "append")

    def follow_all() -> None:
        append(RAW_IMAGES)
        append(RAW_IMAGES)

    started = time.perf_counter()
    clock.timed(follow_all, "follow")()
    passed = time.perf_counter() - started
    assert set(clock.seconds) == {"follow", "append raw_images"}
    assert clock.seconds["append raw_images"] >= 0.04
    assert sum(clock.seconds.values()) <= passed
    assert clock.seconds["follow"] < passed - 0.04 + 0.001


def test_what_a_failing_part_took_counts_too() -> None:
    clock = Clock()

    def fails() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        clock.timed(fails, "read")()
    assert list(clock.seconds) == ["read"]
    assert clock.inside == []
