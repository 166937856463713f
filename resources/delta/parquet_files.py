"""A table's Parquet files: reading footers and samples, and writing files without Spark (runs in each executor)."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from resources.delta.arrow_rows import Row, bounded
from resources.files.file_system import arrow_system

MAX_FILES, MAX_ROW_GROUPS = 8, 2  # at most so many files are opened, and so many row groups of each are read
Item = TypeVar("Item")
TASK_ROW_GROUP_BYTES = 4 * 1024**2  # small enough that tasks reuse its memory: with 32 MB, writing takes twice as long
FILE_BYTES = 192 * 1024**2  # no larger than what a compaction makes
MILLISECOND = timedelta(milliseconds=1)
BOUND_LENGTH = 1024  # of texts that are a minimum or maximum in the log: more than a path needs


@dataclass(frozen=True)
class ColumnChunk:
    """How a column is stored in a row group."""

    column: str
    codec: str
    dictionary: bool
    statistics: bool


def located(file: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a file, by its URL or path, and its path there."""
    parts = urlsplit(file)
    if parts.scheme in ("", "file"):
        return pafs.LocalFileSystem(), unquote(parts.path)
    return arrow_system(file)


def open_parquet(file: str) -> pq.ParquetFile:
    """One Parquet file, by its URL."""
    system, path = located(file)
    return pq.ParquetFile(path, filesystem=system)


def exists(file: str) -> bool:
    """Whether the file is still there."""
    return size_of(file) is not None


def size_of(file: str) -> int | None:
    """The file's size in bytes; None if it is gone."""
    system, path = located(file)
    return system.get_file_info(path).size


def file_sizes(folder: str) -> dict[str, int]:
    """The names of the files directly in a folder, and their sizes in bytes."""
    system, path = located(folder)
    found = system.get_file_info(pafs.FileSelector(path))
    return {file.base_name: file.size for file in found if file.type == pafs.FileType.File}


def newest_first(folder: str) -> list[str]:
    """The URLs of the Parquet files directly in a folder, whether or not a log names them."""
    system, path = file_system_of(folder)
    found = system.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    files = [file for file in found if file.type == pafs.FileType.File and file.extension == "parquet"]
    root = folder if "://" in folder else Path(folder).absolute().as_uri()
    return [f"{root}/{file.base_name}" for file in sorted(files, key=lambda file: -file.mtime_ns)]


def is_whole(file: str) -> bool:
    """Whether the file can be opened, which files of killed writers cannot."""
    try:
        open_parquet(file).close()
    except (pa.ArrowException, OSError):
        return False
    return True


def row_group_metadata(files: Iterable[str]) -> Iterator[pq.RowGroupMetaData]:
    """The footers' metadata of every row group of the files."""
    for file in files:
        with open_parquet(file) as parquet:
            for index in range(parquet.num_row_groups):
                yield parquet.metadata.row_group(index)


def column_chunks(files: Iterable[str]) -> set[ColumnChunk]:
    """The ways in which columns are stored in any row group; a nested column has its outermost name."""
    chunks = (group.column(index) for group in row_group_metadata(files) for index in range(group.num_columns))
    return {
        ColumnChunk(
            chunk.path_in_schema.split(".")[0], chunk.compression, chunk.has_dictionary_page, chunk.is_stats_set
        )
        for chunk in chunks
    }


def codecs(files: Iterable[str], column: str) -> set[str]:
    """The codecs of a column in any row group of the files."""
    return {chunk.codec for chunk in column_chunks(files) if chunk.column == column}


def row_groups(files: Iterable[str]) -> list[tuple[int, int]]:
    """Rows and bytes of every row group of the files."""
    return [(group.num_rows, group.total_byte_size) for group in row_group_metadata(files)]


def evenly_spaced(of: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, at equal distances."""
    count = min(limit, len(of))
    return [of[index * len(of) // count] for index in range(count)]


def sample_rows(files: Sequence[str], columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """Up to `limit` rows from all over the files; columns that a file lacks are null."""
    rows: list[dict[str, Any]] = []
    chosen = evenly_spaced(files, MAX_FILES)
    for left, file in zip(range(len(chosen), 0, -1), chosen, strict=True):
        wanted = -(-(limit - len(rows)) // left)
        with open_parquet(file) as parquet:
            groups = evenly_spaced(range(parquet.num_row_groups), MAX_ROW_GROUPS)
            found = parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
        for index in evenly_spaced(range(found.num_rows), wanted):
            rows += found.slice(index, 1).to_pylist()
    return [{**dict.fromkeys(columns), **row} for row in rows]


@dataclass(frozen=True)
class FileLayout:
    """How files are written: one row group per list of rows, no dictionary or statistics for image bytes."""

    schema: pa.Schema
    codec: str
    statistics: tuple[str, ...]  # the columns that have some


@dataclass(frozen=True)
class WrittenFile:
    """A file in the table's folder; `statistics` is JSON, as Delta's log stores it."""

    name: str
    size_bytes: int
    statistics: str


def file_system_of(folder: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a folder, by its path or URL, and its path there."""
    if "://" in folder:
        return arrow_system(folder)
    return pafs.LocalFileSystem(), folder


def write_files(rows: Iterable[Row], folder: str, layout: FileLayout) -> Iterator[WrittenFile]:
    """Write the rows to as many files as they fill, without a commit; no rows make no file."""
    batches = bounded(rows, TASK_ROW_GROUP_BYTES)
    for first in batches:
        yield write_file(first, batches, folder, layout)


def write_file(first: list[Row], more: Iterator[list[Row]], folder: str, layout: FileLayout) -> WrittenFile:
    """Write lists of rows until the file is full or no list is left."""
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
    """The number of rows, and the minimum, maximum and null count of some columns."""

    def __init__(self, columns: Iterable[str]) -> None:
        self.rows = 0
        self.nulls = dict.fromkeys(columns, 0)
        self.smallest: dict[str, Any] = {}
        self.largest: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Include more rows."""
        self.rows += table.num_rows
        for name in self.nulls:
            self.nulls[name] += table[name].null_count
            found = pc.call_function("min_max", [table[name]]).as_py()
            if found["min"] is not None:
                self.smallest[name] = min(self.smallest.get(name, found["min"]), found["min"])
                self.largest[name] = max(self.largest.get(name, found["max"]), found["max"])

    def to_json(self) -> str:
        """In the format of Delta's protocol ("Per-file Statistics"); times are rounded outwards to milliseconds.

        Columns with infinite values have no minimum and maximum, because JSON has no such numbers; nor do columns with
        long texts, such as what a camera may have written into a photo, because every reader loads the log.
        """
        names = [name for name, smallest in self.smallest.items() if is_bound(smallest, self.largest[name])]
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": {name: to_value(self.smallest[name], timedelta()) for name in names},
                "maxValues": {name: to_value(self.largest[name], MILLISECOND) for name in names},
                "nullCount": self.nulls,
            }
        )


def is_bound(*values: Any) -> bool:
    """Whether none of the values is an infinite number, NaN or a long text."""
    return all(
        math.isfinite(value) if isinstance(value, float) else not isinstance(value, str) or len(value) <= BOUND_LENGTH
        for value in values
    )


def to_value(value: Any, more: timedelta) -> Any:
    """A value for JSON; a time is truncated to milliseconds after adding `more`."""
    if isinstance(value, datetime):
        return (value + more).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
