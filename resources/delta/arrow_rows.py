"""Spark rows through plain Python functions, in Arrow batches of bounded size (runs in each executor)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

BATCH_BYTES = 32 * 1024**2
BATCH_ROWS = 1024

Row = dict[str, Any]  # one row of any table, by column


@dataclass(frozen=True)
class SetAside:
    """A row that is reported to the driver instead of written."""

    row: Row


def map_partitions(
    rows: "DataFrame", by: Callable[[Iterable[Row]], Iterable[Row]], columns: "StructType"
) -> "DataFrame":
    """The rows that `by` returns for each task's rows; batches stay far below Arrow's limit of 2 GiB."""

    from pyspark.sql.pandas.types import to_arrow_schema

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        schema = to_arrow_schema(columns)
        for made in bounded(by(row for batch in batches for row in batch.to_pylist())):
            yield pa.RecordBatch.from_pylist(made, schema)

    return rows.mapInArrow(apply, columns)  # pyright: ignore[reportArgumentType] - pyarrow has no types


def bounded(rows: Iterable[Row], content_bytes: int = BATCH_BYTES) -> Iterator[list[Row]]:
    """The rows in lists of at most BATCH_ROWS rows and about `content_bytes` bytes of content."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, bytes))
        if len(batch) >= BATCH_ROWS or size >= content_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def without_set_aside(rows: Iterable[Row | SetAside], aside: list[Row]) -> Iterator[Row]:
    """The rows; those that are set aside go to the list `aside` instead."""
    for row in rows:
        if isinstance(row, SetAside):
            aside.append(row.row)
        else:
            yield row
