"""What the footers of a table's Parquet files say: how they are compressed, how large their row groups are."""

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
import pyarrow.parquet as pq


def read_footer(file: str) -> pq.FileMetaData:
    """The footer of one Parquet file, by its URL."""
    parts = urlsplit(file)
    if parts.scheme in ("", "file"):
        return pq.read_metadata(unquote(parts.path))
    filesystem, path = pafs.FileSystem.from_uri(file)
    return pq.read_metadata(path, filesystem=filesystem)


def codecs(files: Iterable[str], column: str) -> set[str]:
    """The codecs that the column is written with in any row group of the files."""
    found = set()
    for file in files:
        footer = read_footer(file)
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            found |= {
                row_group.column(place).compression
                for place in range(row_group.num_columns)
                if row_group.column(place).path_in_schema == column
            }
    return found


def row_groups(files: Iterable[str]) -> list[tuple[int, int]]:
    """Rows and bytes of every row group of the files."""
    footers = [read_footer(file) for file in files]
    groups = [footer.row_group(place) for footer in footers for place in range(footer.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]
