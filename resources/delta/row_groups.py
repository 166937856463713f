"""Parquet files with planned row groups: near 1 MB, of equal length, some for every rank (runs in each executor)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Content = Literal["original", "jpeg", "pixels"]
Color = Literal["rgb", "gray"]


CACHE_ROW_GROUP_BYTES = 1024 * 1024
ROW_GROUPS_PER_RANK = 4
ROW_GROUP = "_row_group"  # a column that says into which row group a row goes


def row_group_count(rows: int, content_bytes: int, ranks: int) -> int:
    """How many row groups near CACHE_ROW_GROUP_BYTES: as many for each rank, four at least, none of them empty."""
    per_rank = max(ROW_GROUPS_PER_RANK, math.ceil(content_bytes / CACHE_ROW_GROUP_BYTES / ranks))
    return min(rows, per_rank * ranks)


def row_group_numbers(rows: int, groups: int) -> np.ndarray:
    """The row group of each row; groups differ by one row at most, the larger ones come first.

    Petastorm gives row group n to shard n modulo ranks: with equal groups in this order, shards are equal too.
    """
    sizes = np.full(groups, rows // groups) + (np.arange(groups) < rows % groups)
    return np.repeat(np.arange(groups), sizes)


def shard_rows(groups: Sequence[tuple[int, int]], ranks: int) -> list[int]:
    """How many rows each rank reads, of row groups by rows and bytes."""
    return [sum(rows for rows, _ in groups[rank::ranks]) for rank in range(ranks)]


@dataclass(frozen=True)
class RowGroupWriter:
    """Writes a partition's rows, sorted by row group, as one file."""

    folder: str
    schema: pa.Schema  # without ROW_GROUP

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The file's name, by its first row group, and its size; no file for no rows."""
        rows = (row for batch in batches for row in batch.to_pylist())
        groups = ((number, list(group)) for number, group in groupby(rows, key=itemgetter(ROW_GROUP)))
        for number, group in groups:
            file = Path(self.folder) / f"part-{number:06d}.parquet"
            with pq.ParquetWriter(
                file, self.schema, compression="none", use_dictionary=False, write_statistics=False
            ) as writer:
                writer.write_table(pa.Table.from_pylist(group, self.schema))
                for _, more in groups:
                    writer.write_table(pa.Table.from_pylist(more, self.schema))
            yield pa.RecordBatch.from_pylist([{"name": file.name, "bytes": file.stat().st_size}])
