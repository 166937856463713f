"""The driver hears what tasks do while they do it."""

import socket
import time
from collections.abc import Iterable, Iterator

import pytest
from pyspark.sql import SparkSession

from resources.delta.task_counts import NOT_COUNTED, counted
from resources.progress import ProgressLine

pytestmark = pytest.mark.spark


def to_nothing(line: str) -> None:
    """Nobody listens."""


def test_what_tasks_count_is_known_before_they_are_done_and_is_exact_in_the_end(spark: SparkSession) -> None:
    progress = ProgressLine("counted", 8, "numbers", to_nothing)
    seen: list[int] = []

    def slowly(numbers: Iterable[int]) -> Iterator[int]:
        for number in counter.over(numbers):
            time.sleep(0.4)
            yield number

    with counted(spark, progress) as counter:
        progress_before = progress.reach
        progress.reach = lambda done: (seen.append(done), progress_before(done))[1]
        numbers = spark.sparkContext.parallelize(range(8), 2).mapPartitions(slowly).collect()
        wait_until_reached(progress, 8)
    assert numbers == list(range(8)), "they are passed on as they are"
    assert any(0 < done < 8 for done in seen)
    assert progress.n == 8


def wait_until_reached(progress: ProgressLine, done: int) -> None:
    """Datagrams are heard a moment after they were sent."""
    deadline = time.monotonic() + 10
    while progress.n < done and time.monotonic() < deadline:
        time.sleep(0.01)


def test_rows_are_counted_and_stay_as_they_are(spark: SparkSession) -> None:
    rows = spark.createDataFrame([(number, [0.5, 0.5]) for number in range(20)], "number long, shares array<double>")
    progress = ProgressLine("counted", 20, "rows", to_nothing)
    with counted(spark, progress) as counter:
        same = counter.over_rows(rows)
        assert sorted(same.collect()) == sorted(rows.collect())
        wait_until_reached(progress, 20)
    assert same.schema == rows.schema
    assert progress.n == 20


def test_datagrams_of_others_count_nothing(spark: SparkSession) -> None:
    progress = ProgressLine("counted", 8, "numbers", to_nothing)
    with counted(spark, progress) as counter, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        assert counter.address is not None
        for message in (b"", b"x" * 32, b"x" * 4096, b"GET / HTTP/1.1"):
            sending.sendto(message, counter.address)
        list(counter.over("ab"))
        wait_until_reached(progress, 2)
    assert progress.n == 2


def test_where_nobody_listens_nothing_is_counted_and_nothing_fails(spark: SparkSession) -> None:
    assert list(NOT_COUNTED.over("ab")) == ["a", "b"]
    with counted(spark, ProgressLine("counted", 2, "letters", to_nothing)) as counter:
        pass
    assert list(counter.over("ab")) == ["a", "b"], "the driver is gone"
