"""What the footers of a table's Parquet files say: how columns are written, how large row groups are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from resources.object_storage import arrow_system


@dataclass(frozen=True)
class ColumnChunk:
    """How a column is written in a row group."""

    column: str
    codec: str
    dictionary: bool
    statistics: bool


def located(file: str) -> tuple[pafs.FileSystem, str]:
    """Where a file lies, by its URL or path."""
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
    system, path = located(file)
    return system.get_file_info(path).type == pafs.FileType.File


def file_sizes(folder: str) -> dict[str, int]:
    """The names of the files directly in a folder, and their sizes in bytes."""
    system, path = located(folder)
    found = system.get_file_info(pafs.FileSelector(path))
    return {file.base_name: file.size for file in found if file.type == pafs.FileType.File}


def row_group_metadata(files: Iterable[str]) -> Iterator[pq.RowGroupMetaData]:
    """What the footers say of every row group of the files."""
    for file in files:
        with open_parquet(file) as parquet:
            for place in range(parquet.num_row_groups):
                yield parquet.metadata.row_group(place)


def column_chunks(files: Iterable[str]) -> set[ColumnChunk]:
    """The ways in which columns are written in any row group of the files; a nested column is its outermost name."""
    chunks = (group.column(place) for group in row_group_metadata(files) for place in range(group.num_columns))
    return {
        ColumnChunk(
            chunk.path_in_schema.split(".")[0], chunk.compression, chunk.has_dictionary_page, chunk.is_stats_set
        )
        for chunk in chunks
    }


def codecs(files: Iterable[str], column: str) -> set[str]:
    """The codecs that the column is written with in any row group of the files."""
    return {chunk.codec for chunk in column_chunks(files) if chunk.column == column}


def row_groups(files: Iterable[str]) -> list[tuple[int, int]]:
    """Rows and bytes of every row group of the files."""
    return [(group.num_rows, group.total_byte_size) for group in row_group_metadata(files)]
