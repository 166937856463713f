"""A few rows of many Parquet files, from all over them: neighbours in a table look alike."""

from collections.abc import Sequence
from typing import Any, TypeVar

from resources.parquet_footers import open_parquet

FILES, GROUPS = 8, 2  # files that are opened, and row groups of each that are read, at most

One = TypeVar("One")


def spread(of: Sequence[One], most: int) -> list[One]:
    """So many of them at most, from all over."""
    count = min(most, len(of))
    return [of[place * len(of) // count] for place in range(count)]


def spread_rows(files: Sequence[str], columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """A few rows of the files; null in columns that a file was written without."""
    rows: list[dict[str, Any]] = []
    chosen = spread(files, FILES)
    for left, file in zip(range(len(chosen), 0, -1), chosen, strict=True):
        wanted = -(-(limit - len(rows)) // left)
        with open_parquet(file) as parquet:
            groups = spread(range(parquet.num_row_groups), GROUPS)
            found = parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
        for place in spread(range(found.num_rows), wanted):
            rows += found.slice(place, 1).to_pylist()
    return [{**dict.fromkeys(columns), **row} for row in rows]
