"""Parquet files for caches, with row groups of about 1 MB and equal length, for every rank (runs in each executor)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resources.delta.arrow_rows import Row

Content = Literal["original", "jpeg", "pixels"]
Page = Literal["non_blank", "first"]  # of images with several pages or frames
Color = Literal["rgb", "gray"]

MEBIBYTE = 1024 * 1024
CACHE_ROW_GROUP_BYTES = MEBIBYTE
ROW_GROUPS_PER_RANK = 4
ROW_GROUP = "_row_group"  # a temporary column: the row group of each row


def row_group_count(rows: int, content_bytes: int, ranks: int) -> int:
    """How many row groups near CACHE_ROW_GROUP_BYTES: as many for each rank, four at least, none of them empty."""
    per_rank = max(ROW_GROUPS_PER_RANK, math.ceil(content_bytes / CACHE_ROW_GROUP_BYTES / ranks))
    return min(rows, per_rank * ranks)


def row_group_numbers(rows: int, groups: int) -> np.ndarray:
    """The row group of each row; groups differ by at most one row, and the larger ones come first.

    Petastorm assigns row group n to shard n modulo ranks, so equal groups in this order make equal shards.
    """
    sizes = np.full(groups, rows // groups) + (np.arange(groups) < rows % groups)
    return np.repeat(np.arange(groups), sizes)


def shard_rows(groups: Sequence[tuple[int, int]], ranks: int) -> list[int]:
    """The number of rows that each rank reads, from the rows and bytes of every row group."""
    return [sum(rows for rows, _ in groups[rank::ranks]) for rank in range(ranks)]


@dataclass(frozen=True)
class RowGroupWriter:
    """Writes a partition's rows, sorted by row group, as one file."""

    folder: str
    schema: pa.Schema  # without ROW_GROUP

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write a Spark partition; yields the file's name and size."""
        for name, size in self.write(row for batch in batches for row in batch.to_pylist()):
            yield pa.RecordBatch.from_pylist([{"name": name, "bytes": size}])

    def write(self, rows: Iterable[Row]) -> Iterator[tuple[str, int]]:
        """Write the file; yields its name, after its first row group, and its size. No rows make no file."""
        groups = ((number, list(group)) for number, group in groupby(rows, key=itemgetter(ROW_GROUP)))
        for number, group in groups:
            file = Path(self.folder) / f"part-{number:06d}.parquet"
            with pq.ParquetWriter(
                file, self.schema, compression="none", use_dictionary=False, write_statistics=False
            ) as writer:
                writer.write_table(pa.Table.from_pylist(group, self.schema))
                for _, more in groups:
                    writer.write_table(pa.Table.from_pylist(more, self.schema))
            yield file.name, file.stat().st_size
