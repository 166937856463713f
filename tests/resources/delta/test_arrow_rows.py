"""Rows go through Python functions in batches of bounded size."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from resources.delta.arrow_rows import BATCH_BYTES, BATCH_ROWS, Row, bounded, map_partitions

COLUMNS = StructType([StructField("n", IntegerType()), StructField("text", StringType())])


def test_batches_are_bounded_by_rows() -> None:
    batches = list(bounded({"n": n} for n in range(2 * BATCH_ROWS + 1)))
    assert [len(batch) for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 1]
    assert [row["n"] for batch in batches for row in batch] == list(range(2 * BATCH_ROWS + 1))


def test_batches_are_bounded_by_bytes_and_a_large_row_is_a_batch_of_its_own() -> None:
    half, whole = bytes(BATCH_BYTES // 2), bytes(BATCH_BYTES)
    batches = bounded({"content": content, "none": None} for content in (half, half, whole, half))
    assert [len(batch) for batch in batches] == [2, 1, 1]


def test_no_rows_are_no_batches() -> None:
    assert list(bounded([])) == []


@pytest.mark.spark
def test_a_row_may_become_none_one_or_several(spark: SparkSession) -> None:
    def repeated(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            for _ in range(row["n"]):
                yield {"text": row["text"]}  # a column that is left out is null

    rows = spark.createDataFrame([(0, "none"), (1, "one"), (2, None)], COLUMNS)
    made = map_partitions(rows, repeated, COLUMNS)
    assert made.schema == COLUMNS
    assert [row.n for row in made.collect()] == [None] * 3
    assert sorted(str(row.text) for row in made.collect()) == ["None", "None", "one"]


@pytest.mark.spark
def test_what_python_is_handed_at_once_is_bounded_by_bytes(spark: SparkSession) -> None:
    def rows_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_pydict({"n": pa.array([batch.num_rows], pa.int32())})

    large = spark.range(0, 3, 1, 1).selectExpr(f"cast(repeat('x', {40 * 1024**2}) AS binary) content")
    assert [row.n for row in large.mapInArrow(rows_of, "n int").collect()] == [2, 1]
