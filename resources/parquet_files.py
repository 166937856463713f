"""A table's Parquet files, written by whoever has the rows (runs in each executor)."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from resources.arrow_rows import Row, bounded
from resources.object_storage import arrow_system

ROW_GROUP_BYTES = 4 * 1024**2  # memory that is used again and again: with 32 MB writing takes twice as long
FILE_BYTES = 192 * 1024**2  # no larger than what a compaction makes
MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class FileLayout:
    """How files are written: a row group for each list of rows, no dictionary or statistics of image bytes."""

    schema: pa.Schema
    codec: str
    statistics: tuple[str, ...]  # the columns that have some


@dataclass(frozen=True)
class WrittenFile:
    """A file in the table's folder; `statistics` is JSON, as Delta's log takes it."""

    name: str
    size_bytes: int
    statistics: str


def file_system_of(folder: str) -> tuple[pafs.FileSystem, str]:
    """Where a folder lies, on disk or by its URL, and its path there."""
    if "://" in folder:
        return arrow_system(folder)
    return pafs.LocalFileSystem(), folder


def write_files(rows: Iterable[Row], folder: str, layout: FileLayout) -> Iterator[WrittenFile]:
    """Write the rows into as many files as they fill, none for no rows; no reader knows of them before a commit."""
    batches = bounded(rows, ROW_GROUP_BYTES)
    for first in batches:
        yield write_file(first, batches, folder, layout)


def write_file(first: list[Row], more: Iterator[list[Row]], folder: str, layout: FileLayout) -> WrittenFile:
    """Write lists of rows until the file is full or none is left."""
    system, root = file_system_of(folder)
    name = f"part-{uuid4()}.parquet"
    statistics = Statistics(layout.statistics)
    with (
        system.open_output_stream(f"{root}/{name}") as file,
        pq.ParquetWriter(
            file,
            layout.schema,
            compression="none" if layout.codec == "uncompressed" else layout.codec,
            use_dictionary=list(layout.statistics),  # pyright: ignore[reportArgumentType] - pyarrow has no types
            write_statistics=list(layout.statistics),  # pyright: ignore[reportArgumentType]
        ) as writer,
    ):
        batch: list[Row] | None = first
        while batch:
            table = pa.Table.from_pylist(batch, layout.schema)
            writer.write_table(table)
            statistics.add(table)
            batch = next(more, None) if file.tell() < FILE_BYTES else None
    return WrittenFile(name, system.get_file_info(f"{root}/{name}").size, statistics.to_json())


class Statistics:
    """The number of rows, and of some columns the smallest and largest values and the number of nulls."""

    def __init__(self, columns: Iterable[str]) -> None:
        self.rows = 0
        self.nulls = dict.fromkeys(columns, 0)
        self.smallest: dict[str, Any] = {}
        self.largest: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Take more rows into account."""
        self.rows += table.num_rows
        for name in self.nulls:
            self.nulls[name] += table[name].null_count
            found = pc.call_function("min_max", [table[name]]).as_py()
            if found["min"] is not None:
                self.smallest[name] = min(self.smallest.get(name, found["min"]), found["min"])
                self.largest[name] = max(self.largest.get(name, found["max"]), found["max"])

    def to_json(self) -> str:
        """As Delta's protocol writes it ("Per-file Statistics"): times in milliseconds, here rounded outwards."""
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": {name: to_value(value, timedelta()) for name, value in self.smallest.items()},
                "maxValues": {name: to_value(value, MILLISECOND) for name, value in self.largest.items()},
                "nullCount": self.nulls,
            }
        )


def to_value(value: Any, more: timedelta) -> Any:
    """A value as JSON holds it; a time is cut to milliseconds after `more` is added."""
    if isinstance(value, datetime):
        return (value + more).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
