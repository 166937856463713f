"""What a Delta table's log says of its files: read by delta-rs, without a Spark job."""

from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable

STATISTICS_PROPERTY = "delta.dataSkippingStatsColumns"


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table's newest version."""

    url: str
    size_bytes: int


@dataclass(frozen=True)
class TableFiles:
    """The files of a table's newest version, newest first, and the columns whose statistics the log shall keep."""

    files: tuple[DataFile, ...] = ()
    statistics_columns: str = ""

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)


def table_files(uri: str, version: int | None = None) -> TableFiles:
    """What the log of the table at `uri` says, now or at a version; no files where no table is yet."""
    if not DeltaTable.is_deltatable(uri):
        return TableFiles()
    root = uri if "://" in uri else Path(uri).absolute().as_uri()
    table = DeltaTable(uri, version=version)
    actions = table.get_add_actions()
    columns = [actions[name].to_pylist() for name in ("path", "size_bytes", "modification_time")]
    newest_first = sorted(zip(*columns, strict=True), key=lambda file: file[2], reverse=True)
    return TableFiles(
        tuple(DataFile(f"{root}/{path}", size) for path, size, _ in newest_first),
        table.metadata().configuration.get(STATISTICS_PROPERTY) or "",
    )
