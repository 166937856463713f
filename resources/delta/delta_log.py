"""A Delta table's log: its files, properties and columns, read and changed by delta-rs, without Spark."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from deltalake import ColumnProperties, DeltaTable, Schema, WriterProperties
from deltalake import Field as DeltaField
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow.fs import FileSystem, FileType

from resources.delta.parquet_files import BOUND_LENGTH, exists, file_system_of
from resources.delta.table import TABLE_ROW_GROUP_BYTES, Snapshot, Table

STATISTICS_PROPERTY = "delta.dataSkippingStatsColumns"
RETENTION_PROPERTY = "delta.logRetentionDuration"
# Versions whose log entries are gone cannot be read, whatever files are there; Delta's default is 30 days.
LOG_RETENTION = "interval 730 days"
# What a commit records if its table, or a part of it, has all rows up to a commit of an upstream. The number of a
# version is not enough: a table that was recreated or restored from a copy has other commits with the same numbers.
UPSTREAM, UPSTREAM_ID, VERSION, COMMITTED = "upstream", "upstreamId", "upstreamVersion", "upstreamTime"
FILES = "filesAdded"
# Operations that change no row, as delta-rs and Spark name them.
SAME_ROWS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "ADD COLUMN", "ADD COLUMNS"}
REPAIR_JOB = "repair_tables"
CREATED = ".made"  # a folder beside the tables, with a file for each that was created
MAX_ATTEMPTS = 10  # to add columns, if other processes commit at the same time


class LostTable(RuntimeError):
    """A table that was created but no longer exists."""


class BrokenTable(RuntimeError):
    """A table whose log cannot be read."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table."""

    url: str
    size_bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class TableFiles:
    """A table's files, newest first, and the columns whose statistics its log holds."""

    files: tuple[DataFile, ...] = ()
    statistics_columns: str = ""

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)


def table_files(uri: str, version: int | None = None) -> TableFiles:
    """The files of the table at `uri`, now or at a version; none if there is no table yet."""
    if not DeltaTable.is_deltatable(uri):
        return TableFiles()
    root = uri if "://" in uri else Path(uri).absolute().as_uri()
    table = DeltaTable(uri, version=version)
    actions = table.get_add_actions()
    columns = [actions[name].to_pylist() for name in ("path", "size_bytes", "modification_time", "num_records")]
    newest_first = sorted(zip(*columns, strict=True), key=itemgetter(2), reverse=True)
    return TableFiles(
        tuple(DataFile(f"{root}/{path}", size, rows) for path, size, _, rows in newest_first),
        table.metadata().configuration.get(STATISTICS_PROPERTY) or "",
    )


def last_metadata(instance: dg.DagsterInstance, asset: str) -> Mapping[str, object]:
    """The metadata of the asset's last materialization, in any run."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    return {name: value.value for name, value in metadata.items()}


def table_metadata(table: Table, uri: str, now: Snapshot) -> dict[str, int | dg.MetadataValue | dg.TableColumnLineage]:
    """Metadata of the table at `uri`: rows, bytes, files, Delta version, and its columns' lineage."""
    files = table_files(uri, now.version)
    return {
        "dagster/row_count": now.rows,
        "delta_version": now.version,
        "bytes": files.size_bytes,
        "files": len(files.files),
        "dagster/column_lineage": table.column_lineage,
    }


def changes_rows(commit: Mapping[str, Any]) -> bool:
    """Whether a commit in a table's history changed rows: overwriting with no rows does, appending none does not."""
    nothing_appended = commit.get("operationParameters", {}).get("mode") == "Append" and (
        commit.get("operationMetrics", {}).get("numOutputRows") == "0"
    )
    return commit["operation"] not in SAME_ROWS and not nothing_appended and commit.get(FILES) != "0"


def keep_log(log: DeltaTable) -> None:
    """Set the log retention of a table that was created without one."""
    if RETENTION_PROPERTY in log.metadata().configuration:
        return
    try:
        log.alter.set_table_properties({RETENTION_PROPERTY: LOG_RETENTION})
    except CommitFailedError:  # fine if another process has set it
        log.update_incremental()
        if RETENTION_PROPERTY not in log.metadata().configuration:
            raise


def why_unreadable(uri: str, version: int) -> str:
    """Why a version of the table at `uri` can no longer be read; empty if it can."""
    if not DeltaTable.is_deltatable(uri):
        return "there is no such table"
    try:
        files = table_files(uri, version).files
    except DeltaError:
        return "its log does not hold the version"
    gone = sum(not exists(file.url) for file in files)
    return f"{gone} of its {len(files)} files are gone" if gone else ""


def open_log(uri: str, version: int | None = None, *, without_files: bool = False) -> DeltaTable | None:
    """The log of the table at `uri`, now or at a version; None if there never was such a table.

    Raises:
        LostTable: There was one.
        BrokenTable: The log cannot be read.
        TableNotFoundError, DeltaError: The same for a version.
    """
    name = uri.rpartition("/")[2]
    try:
        return DeltaTable(uri, version=version, without_files=without_files)
    except TableNotFoundError as error:
        if version is not None:
            raise
        if was_created(uri):
            raise LostTable(
                f"the table {name} is gone: {uri} has no Delta log any more. Restore the folder from a backup, or "
                f"launch the job {REPAIR_JOB}, which restores what it can"
            ) from error
        return None
    except DeltaError as error:
        if version is not None:
            raise
        raise BrokenTable(
            f"the Delta log of {name} in {uri} cannot be read: launch the job {REPAIR_JOB}. The error: "
            f"{first_line(error)}"
        ) from error


def position(uri: str, version: int) -> dict[str, str]:
    """What a commit records if its table has all rows of a version of the upstream at `uri`."""
    log = DeltaTable(uri, without_files=True)
    recorded = {UPSTREAM: uri.rpartition("/")[2], UPSTREAM_ID: str(log.metadata().id), VERSION: str(version)}
    committed = commit_time(log, version)
    return recorded | ({COMMITTED: committed} if committed else {})


def commit_time(log: DeltaTable, version: int) -> str | None:
    """When the version was committed, as the log says; None if it does not go back that far."""
    commits = log.history(log.version() - version + 1) if version <= log.version() else []
    return next((str(commit.get("timestamp")) for commit in commits if commit["version"] == version), None)


def why_void(uri: str, recorded: Mapping[str, Any]) -> str | None:
    """Why the upstream at `uri` does not have the recorded commit; None if it has. Older releases recorded less."""
    log = open_log(uri)
    if log is None:
        return "is gone"
    version, table_id = int(recorded[VERSION]), str(log.metadata().id)
    if recorded.get(UPSTREAM_ID, table_id) != table_id:
        return "was recreated"
    committed = commit_time(log, version)
    if version > log.version() or (COMMITTED in recorded and committed not in (None, recorded[COMMITTED])):
        return f"was restored from another copy, now at version {log.version()},"
    return None


def create_table(uri: str, table: Table) -> None:
    """Create the table, empty, with all columns, unless another process has."""
    configuration = {**_statistics(table), RETENTION_PROPERTY: LOG_RETENTION}
    DeltaTable.create(uri, Schema.from_json(table.columns.json()), mode="ignore", configuration=configuration)


@cache
def remember(uri: str) -> None:
    """Record that the table at `uri` was created, so that its loss is noticed; once per process."""
    if not was_created(uri):
        system, path = _record(uri)
        system.create_dir(path.rpartition("/")[0])
        system.open_output_stream(path).close()


def was_created(uri: str) -> bool:
    """Whether a table was ever created at `uri`, even if it no longer exists."""
    system, path = _record(uri)
    return system.get_file_info(path).type == FileType.File


def _record(uri: str) -> tuple[FileSystem, str]:
    system, path = file_system_of(uri)
    root, _, name = path.rpartition("/")
    return system, f"{root}/{CREATED}/{name}"


def first_line(error: Exception) -> str:
    """The first line of an error of delta-rs, which may continue with a stack trace of hundreds."""
    return str(error).partition("\n")[0]


def add_columns(log: DeltaTable, table: Table) -> bool:
    """Adds the columns that the table was created without; existing rows get the column's fill value, or null.

    Returns:
        Whether any columns were missing.
    """
    if not _lacking(log, table):
        return False
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            if lacks_filled(log, table):
                _add_filled(log, table)
            if lacking := _lacking(log, table):
                log.alter.add_columns(lacking)
            log.alter.set_table_properties(_statistics(table))
        except CommitFailedError:  # another process committed first, perhaps the same columns
            log.update_incremental()
            if attempt == MAX_ATTEMPTS and _lacking(log, table):
                raise
        else:
            break
    return True


def lacks_filled(log: DeltaTable, table: Table) -> bool:
    """Whether the table was created without a column that has a fill value."""
    filled = table.fill_values.keys()
    return bool(filled) and not filled <= {field.name for field in log.schema().fields}


def _add_filled(log: DeltaTable, table: Table) -> None:
    """Adds and fills columns in one commit: no reader sees nulls, and a killed process leaves none behind."""
    values = {
        field.name: [table.fill_values[field.name]] for field in _lacking(log, table) if field.name in table.fill_values
    }
    newest = DeltaTable(log.table_uri)
    if lacks_filled(newest, table):  # otherwise another process was faster, and rows may have other values since
        # A merge, because pyarrow 14 cannot read the files of an update (delta-rs writes string views there).
        newest.merge(
            pa.table(values),
            "true",
            source_alias="new",
            target_alias="old",
            merge_schema=True,
            writer_properties=writer_properties(table),
        ).when_matched_update({name: f"new.{name}" for name in values}).execute()
    log.update_incremental()


def writer_properties(table: Table, rows_per_group: int | None = None) -> WriterProperties:
    """How delta-rs writes the table's files: as Spark does with `parquet_settings`."""
    images = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    return WriterProperties(
        compression="UNCOMPRESSED" if table.binary_columns else "ZSTD",
        max_row_group_size=rows_per_group,
        statistics_truncate_length=BOUND_LENGTH,
        column_properties=dict.fromkeys(table.binary_columns, images) or None,
    )


def rows_per_group(files: TableFiles) -> int:
    """How many rows of these files make a row group of a table."""
    rows = sum(file.rows or 0 for file in files.files)
    return max(1, rows * TABLE_ROW_GROUP_BYTES // max(files.size_bytes, 1))


def _statistics(table: Table) -> dict[str, str]:
    return {STATISTICS_PROPERTY: ",".join(table.statistics_columns)}


def _lacking(log: DeltaTable, table: Table) -> list[DeltaField]:
    there = {field.name for field in log.schema().fields}
    return [field for field in Schema.from_json(table.columns.json()).fields if field.name not in there]


def is_whole(commit: bytes) -> bool:
    """Whether a commit's file holds actions, and nothing but actions."""
    try:
        actions = [json.loads(line) for line in commit.splitlines() if line.strip()]
    except ValueError:
        return False
    return bool(actions) and all(isinstance(action, dict) for action in actions)


def fault_of_newest_commit(uri: str) -> str:
    """What is wrong with the newest commit of the table at `uri`; empty if nothing is, or if the table is not local.

    A power failure may leave a commit empty or cut off. delta-rs takes an empty one for a commit without changes.
    """
    log = Path(uri) / "_delta_log"
    newest = max(log.glob(f"{'[0-9]' * 20}.json"), default=None)
    if newest is None:
        return ""
    content = newest.read_bytes()
    if is_whole(content):
        return ""
    return f"its newest commit {newest} is {'cut off' if content.strip() else 'empty'}"
