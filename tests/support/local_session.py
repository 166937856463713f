"""The few things that ingestion asks of a Spark session, done in this process: for thousands of runs on a few images.

It takes the place of Spark, not of our own code: everything that decides, reads, writes and commits is the product's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql.types import Row, StructType

from resources.delta.spark_session import DeltaSpark


@dataclass(frozen=True)
class LocalRows:
    """An RDD or a DataFrame of one partition."""

    rows: list[Any]

    def mapPartitions(self, function: Callable[[Iterator[Any]], Iterable[Any]]) -> "LocalRows":  # noqa: N802
        """Call the function on all rows."""
        return LocalRows(list(function(iter(self.rows))))

    def mapInArrow(self, function: Callable[[Iterator[Any]], Iterable[Any]], _: StructType) -> "LocalRows":  # noqa: N802
        """Call the function on a batch of all rows."""
        batches = list(function(iter([pa.RecordBatch.from_pylist(self.rows)] if self.rows else [])))
        return LocalRows([Row(**row) for batch in batches for row in batch.to_pylist()])

    def repartition(self, _: int) -> "LocalRows":
        """There is one partition."""
        return self

    def collect(self) -> list[Any]:
        """Return the rows."""
        return self.rows


class LocalSession:
    """A session whose tasks run here, one after the other; it is its own context and status tracker."""

    defaultParallelism = 1  # noqa: N815

    @property
    def sparkContext(self) -> "LocalSession":  # noqa: N802
        """The session itself."""
        return self

    def parallelize(self, rows: Iterable[Any], _: int) -> LocalRows:
        """Return the rows as one partition."""
        return LocalRows(list(rows))

    def createDataFrame(self, rows: Sequence[Sequence[Any]], schema: str) -> LocalRows:  # noqa: N802
        """Return the rows as one partition."""
        names = [column.split()[0] for column in schema.split(",")]
        return LocalRows([dict(zip(names, row, strict=True)) for row in rows])

    def statusTracker(self) -> "LocalSession":  # noqa: N802
        """The session itself."""
        return self

    def getJobIdsForGroup(self, _: str) -> list[int]:  # noqa: N802
        """No job runs while anybody asks."""
        return []

    def setJobGroup(self, *_: str) -> None:  # noqa: N802
        """There are no jobs."""

    def setLocalProperty(self, *_: Any) -> None:  # noqa: N802
        """There are no properties."""


class LocalSpark(DeltaSpark):
    """The resource of such a session."""

    @property
    def spark_session(self) -> Any:
        """The session."""
        return LocalSession()
