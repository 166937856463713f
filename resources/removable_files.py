"""Files in a Delta table's folder that neither the table as it is needs, nor any version that is to be kept.

Among them are those of runs that were killed before their commit.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from deltalake import DeltaTable

from resources.parquet_footers import file_sizes

REMEMBERED_HOURS = 168  # for so long a Delta log says when a file left its table


def removable_files(uri: str, keep: Iterable[int], retention_hours: int) -> dict[str, int]:
    """Their names and sizes in bytes: files that left the table, or were written, longer ago than the retention."""
    names = {PurePosixPath(file).name for file in _vacuum(uri, keep, retention_hours, dry_run=True)}
    return {name: size for name, size in file_sizes(uri).items() if name in names}  # some are removed already


def remove_files(uri: str, keep: Iterable[int], retention_hours: int) -> None:
    """Remove them; the table's log says so."""
    _vacuum(uri, keep, retention_hours, dry_run=False)


def _vacuum(uri: str, keep: Iterable[int], retention_hours: int, *, dry_run: bool) -> list[str]:
    return DeltaTable(uri).vacuum(
        retention_hours, dry_run, enforce_retention_duration=False, full=True, keep_versions=sorted(keep)
    )
