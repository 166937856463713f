"""The Delta tables by delta-rs, without Spark: their logs, thin columns, small merges.

A sensor has a second, and Spark takes six to start; a merge of a few rows takes a tenth of a second here.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, WriterProperties
from deltalake import Field as DeltaField
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction
from pyarrow.dataset import ParquetFragmentScanOptions, Scanner
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from resources.delta.delta_log import (
    LOG_RETENTION,
    RETENTION_PROPERTY,
    STATISTICS_PROPERTY,
    DataFile,
    keep_log,
    table_files,
)
from resources.delta.new_rows import Key, NewRows
from resources.delta.parquet_files import WrittenFile, exists, open_parquet
from resources.delta.table import Snapshot, Table
from resources.delta.table_layout import FileSizes, advise


def make(uri: str, table: Table) -> None:
    """Make the table, empty, with all columns; nothing where another process was faster."""
    configuration = {**_statistics(table), RETENTION_PROPERTY: LOG_RETENTION}
    DeltaTable.create(uri, Schema.from_json(table.columns.json()), mode="ignore", configuration=configuration)


def add_columns(log: DeltaTable, table: Table) -> bool:
    """Add the columns that the table was made without, as nulls in its rows; whether any lacked."""
    lacking = _lacking(log, table)
    if lacking:
        try:
            log.alter.add_columns(lacking)
            log.alter.set_table_properties(_statistics(table))
        except CommitFailedError:  # where another process has added them meanwhile, all is well
            log.update_incremental()
            if _lacking(log, table):
                raise
    return bool(lacking)


def _statistics(table: Table) -> dict[str, str]:
    return {STATISTICS_PROPERTY: ",".join(table.statistics_columns)}


def _lacking(log: DeltaTable, table: Table) -> list[DeltaField]:
    there = {field.name for field in log.schema().fields}
    return [field for field in Schema.from_json(table.columns.json()).fields if field.name not in there]


WRITTEN = "WRITE"  # the operation of a commit that adds rows
UPSTREAM, VERSION, FILES = "upstream", "upstreamVersion", "filesAdded"  # what a commit of files says
BATCH_BYTES = 512 * 1024**2

Added = list[tuple[int | None, list[DataFile]]]  # files by the version that brought them
FILE_NAME = "__filename"  # what pyarrow calls the file that a row is in, below the table's folder
MEETINGS = 10  # with commits of others, until a merge gives up
RECENT_COMMITS = 32  # what is asked for is most often among them


class ThinTables(dg.ConfigurableResource):
    """The Delta tables of one home; image bytes are left to Spark, but for a few rows to look at."""

    root: str
    pinned: dict[str, int] | None = Field(
        default=None, description="Tables, and the Delta versions at which they are read; nothing is written then."
    )

    def uri(self, table: Table) -> str:
        """Where the table lies, for any Delta reader."""
        return f"{self.root}/{table.name}"

    def version_to_read(self, table: Table) -> int | None:
        """The Delta version that the table is pinned at; None for the newest."""
        if self.pinned is None:
            return None
        if table.name not in self.pinned:
            raise ValueError(f"{table.name} is not pinned at a Delta version: {', '.join(self.pinned) or 'none'} are")
        return self.pinned[table.name]

    def require_writable(self) -> None:
        """PermissionError where tables are pinned at versions of before."""
        if self.pinned is not None:
            raise PermissionError(f"tables pinned at Delta versions are only read: {self.pinned}")

    def create(self, table: Table) -> None:
        """Make the table, empty, where it does not exist yet.

        One that was made with fewer columns gets the others, and its log is kept as long as that of a new one.
        """
        self.require_writable()
        try:
            log = DeltaTable(self.uri(table), without_files=True)
        except TableNotFoundError:
            make(self.uri(table), table)
        else:
            keep_log(log)
            add_columns(log, table)

    def history(self, table: Table, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest commits, newest first."""
        log = self._open(table)
        commits = log.history(limit if self.pinned is None else None)  # it also tells what came after its version
        return [commit for commit in commits if commit["version"] <= log.version()][:limit]

    def newest_version(self, table: Table) -> int | None:
        """The table's Delta version, from the names in its log; None where there is no table yet."""
        try:
            return DeltaTable(self.uri(table), version=self.version_to_read(table), without_files=True).version()
        except TableNotFoundError:
            return None

    def table_id(self, table: Table) -> str:
        """Delta's own id of the table: one that is deleted and made anew gets another."""
        return str(self._open(table).metadata().id)

    def snapshot(self, table: Table) -> Snapshot:
        """How many rows the table has, and at which version, from its log."""
        log = self._open(table)
        return Snapshot(rows=log.count(), version=log.version())

    def read(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """The columns of all rows as they are now, or of some; no rows where there is no table yet.

        A column that the table was made without is null.
        """
        try:
            log = DeltaTable(self.uri(table), version=self.version_to_read(table))
        except TableNotFoundError:
            if self.pinned is not None:
                raise
            return to_arrow_schema(table.columns).empty_table().select(columns)
        return _scanner(log, table, columns, where).to_table()

    def file_with(self, table: Table, where: pc.Expression) -> str | None:
        """A file of the table that holds a row like this; None where there is no such row."""
        log = self._open(table)
        found = _scanner(log, table, [FILE_NAME], where).head(1)[FILE_NAME].to_pylist()
        return f"{log.table_uri.rstrip('/')}/{found[0]}" if found else None

    def read_keys(self, table: Table, where: pc.Expression | None = None) -> frozenset[Key]:
        """The keys of all rows, or of some, in the order of the table's keys."""
        rows = self.read(table, table.keys, where)
        return frozenset(zip(*(rows[name].to_pylist() for name in table.keys), strict=True))

    def newest_files(self, table: Table, before: Snapshot) -> list[str]:
        """The files that came since the snapshot; all of them where no row came."""
        log = self._open(table)
        files = set(log.file_uris())
        if log.count() > before.rows:
            files -= set(DeltaTable(self.uri(table), version=before.version).file_uris())
        return sorted(files)

    def newest(self, table: Table, before: Snapshot, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """A few of the rows in the files that came since the snapshot; any rows where none came."""
        rows: list[dict[str, Any]] = []
        for file in self.newest_files(table, before):
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(limit, columns=list(columns), use_threads=False):
                    rows += [{**dict.fromkeys(columns), **row} for row in batch.to_pylist()]
                    if len(rows) >= limit:
                        return rows[:limit]
        return rows

    def transaction(self, table: Table, writer: str) -> int | None:
        """The number of the writer's newest transaction in the table."""
        return self._open(table).transaction_version(writer)

    def added_since(self, table: Table, version: int, columns: Sequence[str]) -> pa.Table | None:
        """The columns of the rows that commits after the version added; None where the log no longer tells."""
        found = self._added_files(table, version)
        if found is None:
            return None
        return NewRows(tuple(file.url for _, files in found for file in files), None).read(columns)

    def new_rows(self, upstream: Table, into: Table, batch_bytes: int = BATCH_BYTES) -> Iterator[NewRows]:
        """What `upstream` got since `into` followed it, in batches of about so many bytes, oldest first.

        Where no commit of `into` says how far it follows, or the log no longer tells what came since, all rows are
        handed over but for those that `into` has by its keys.
        """
        log = self._open(upstream)
        position = self.followed_version(upstream, into)
        found = self._added_files(upstream, position or 0)
        skipped: frozenset[Key] = frozenset()
        if found is None or (found and position is None):
            skipped = self.read_keys(into)
        if found is None:
            files = table_files(self.uri(upstream), log.version()).files
            found = [*((None, [file]) for file in files[:-1]), *((log.version(), [file]) for file in files[-1:])]
        counts = [file.rows for _, files in found for file in files]
        total = None if skipped or None in counts else sum(filter(None, counts))
        batch: list[DataFile] = []
        before = 0
        for version, files in found:
            batch += files
            if version == found[-1][0] or sum(file.size_bytes for file in batch) >= batch_bytes:
                urls = tuple(file.url for file in batch)
                yield NewRows(urls, version, into.keys, skipped, before=before, total=total)
                before += sum(file.rows or 0 for file in batch)
                batch = []

    def all_rows(self, upstream: Table, into: Table, wanted: Iterable[Key]) -> NewRows:
        """The rows of `upstream` with these keys that `into` lacks, wherever they lie."""
        skipped = self.read_keys(into, pc.field(into.keys[0]).isin([key[0] for key in wanted]))
        files = tuple(file.url for file in table_files(self.uri(upstream), self.version_to_read(upstream)).files)
        return NewRows(files, None, into.keys, skipped, frozenset(wanted))

    def followed_version(self, upstream: Table, into: Table) -> int | None:
        """Up to which version of `upstream` the commits of `into` say that it follows."""
        for limit in (RECENT_COMMITS, None):
            for commit in self.history(into, limit):
                if commit.get(UPSTREAM) == upstream.name:
                    return int(commit[VERSION])
        return None

    def versions_with_new_rows(self, table: Table, after: int) -> list[int] | None:
        """The later versions that added rows, oldest first; None when the log no longer tells."""
        log = self._open(table)
        commits = log.history(log.version() - after) if log.version() > after else []
        if len(commits) < log.version() - after:
            return None
        return sorted(commit["version"] for commit in commits if commit["operation"] == WRITTEN)

    def tells_since(self, table: Table, version: int) -> bool:
        """Whether log and files still tell which rows later versions added."""
        return self._added_files(table, version) is not None

    def _added_files(self, table: Table, after: int) -> Added | None:
        """The files that each later version added with new rows; None when the log or a file is gone."""
        versions = self.versions_with_new_rows(table, after)
        if versions is None:
            return None
        found: Added = []
        for version in versions:
            now, before = (set(table_files(self.uri(table), version - back).files) for back in (0, 1))
            found.append((version, sorted(now - before, key=lambda file: file.url)))
        gone = any(not exists(file.url) for _, files in found for file in files)
        return None if gone else found

    def append_files(
        self, table: Table, files: Sequence[WrittenFile], *, follows: tuple[Table, int | None] | None = None
    ) -> int:
        """Add the rows of files that lie in the table's folder, in one commit; the table's version then.

        The commit says up to which version of an upstream the table follows now. No files and no such version: no
        commit.
        """
        log = self._open_to_write(table)
        upstream, version = follows or (None, None)
        if not files and version is None:
            return log.version()
        now = time.time_ns() // 10**6
        said = {UPSTREAM: upstream.name, VERSION: str(version)} if upstream and version is not None else {}
        log.create_write_transaction(
            [AddAction(file.name, file.size_bytes, {}, now, True, file.statistics) for file in files],
            mode="append",
            schema=log.schema(),
            commit_properties=CommitProperties({**said, FILES: str(len(files))}),
        )
        return self._open(table).version()

    def merge(
        self, rows: pa.Table, table: Table, *, updates: Mapping[str, str], transaction: tuple[str, int] | None = None
    ) -> None:
        """Insert the rows whose keys are new; where they are there, update by expressions of `old` and `new`."""
        new = rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns))
        same_keys = " AND ".join(f"old.{key} = new.{key}" for key in table.keys)
        told = CommitProperties(app_transactions=[Transaction(*transaction)] if transaction else None)
        for attempt in range(1, MEETINGS + 1):
            merge = self._open_to_write(table).merge(
                new,
                same_keys,
                source_alias="new",
                target_alias="old",
                writer_properties=_writer_properties(table),
                commit_properties=told,
            )
            try:
                merge.when_matched_update(dict(updates)).when_not_matched_insert_all().execute()
            except CommitFailedError:  # somebody committed meanwhile: what is old and what is new is looked at again
                if attempt == MEETINGS:
                    raise
            else:
                return

    def compact(self, table: Table) -> None:
        """Join small files into larger ones, where it pays; the rows stay as they are."""
        self.require_writable()
        if advise([file.size_bytes for file in table_files(self.uri(table)).files], FileSizes()).pays:
            self._open(table).optimize.compact(writer_properties=_writer_properties(table))

    def _open(self, table: Table) -> DeltaTable:
        try:
            return DeltaTable(self.uri(table), version=self.version_to_read(table))
        except TableNotFoundError:
            if self.pinned is not None:
                raise
            self.create(table)
            return DeltaTable(self.uri(table))

    def _open_to_write(self, table: Table) -> DeltaTable:
        self.require_writable()
        log = self._open(table)
        return self._open(table) if add_columns(log, table) else log


def _scanner(log: DeltaTable, table: Table, columns: Sequence[str], where: pc.Expression | None) -> Scanner:
    # Threads that read a delta-rs file system are still at work when Python ends, and abort it (pyarrow 14).
    unthreaded = {"use_threads": False, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    promised = log.to_pyarrow_dataset(schema=to_arrow_schema(table.columns))
    return promised.scanner(columns=list(columns), filter=where, **unthreaded)


def _writer_properties(table: Table) -> WriterProperties:
    return WriterProperties(compression="UNCOMPRESSED" if table.binary_columns else "ZSTD")
