"""Delta tables named by asset: create, read, append, merge, follow, compact.

Logs, columns without image bytes and small merges go through delta-rs: a sensor has a second, and Spark takes six to
start. Image bytes go through Spark, whose session starts when it is first used.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from dagster_pyspark import PySparkResource
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction
from pyarrow.dataset import ParquetFragmentScanOptions, Scanner
from pydantic import Field
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_log import (
    DataFile,
    add_columns,
    keep_log,
    lacks_filled,
    make,
    table_files,
    why_unreadable,
    writer_properties,
)
from resources.delta.new_rows import Key, NewRows, Task
from resources.delta.parquet_files import WrittenFile, exists, open_parquet
from resources.delta.table import Change, Snapshot, Table
from resources.delta.table_layout import (
    Compaction,
    FileSizes,
    file_layout,
    parquet_settings,
    plan_compaction,
    session_settings,
)
from resources.delta.table_metadata import table_metadata
from resources.delta.task_counts import counted
from resources.files.file_system import uncached_file_system
from resources.progress import ProgressLine


@dataclass(frozen=True)
class StreamPosition:
    """The Delta version that a stream goes on from; `whole` when it is still in the rows that were there at first."""

    version: int
    whole: bool
    table_id: str  # Delta's own: a table that was made anew has another


def stream_position(checkpoint: str) -> StreamPosition | None:
    """Where the stream of this checkpoint goes on; None where no batch of it was ever committed."""
    system, folder = uncached_file_system(checkpoint)
    names = [path.rpartition("/")[2] for path in system.glob(f"{folder}/commits/[0-9]*")]
    if not names:
        return None
    _, _, offset = system.cat_file(f"{folder}/offsets/{max(names, key=int)}").decode().split("\n")
    said = json.loads(offset)
    return StreamPosition(said["reservoirVersion"], said["isStartingVersion"], said["reservoirId"])


def forget_stream(checkpoint: str) -> None:
    """Delete the checkpoint, if there is one: its stream starts from the first row."""
    system, folder = uncached_file_system(checkpoint)
    if system.exists(folder):
        system.rm(folder, recursive=True)


def checkpoint_of(into: Table, only: Mapping[str, object]) -> str:
    """The checkpoint of the part of a table with these values; a column's fill value is left out.

    So a checkpoint written before the column existed goes on.
    """
    return "/".join([into.name, *(str(value) for name, value in only.items() if value != into.fill_values.get(name))])


WRITTEN = "WRITE"  # the operation of a commit that adds rows
UPSTREAM, VERSION, FILES = "upstream", "upstreamVersion", "filesAdded"  # what a commit of files says
BATCH_BYTES = 512 * 1024**2

Added = list[tuple[int | None, list[DataFile]]]  # files by the version that brought them
FILE_NAME = "__filename"  # what pyarrow calls the file that a row is in, below the table's folder
MEETINGS = 10  # with commits of others, until a merge gives up
RECENT_COMMITS = 32  # what is asked for is most often among them

Metadata = dg.MetadataValue | str | int | float

FILE_SIZES = FileSizes()
# Operations that change none; columns are added by delta-rs, or by Spark.
SAME_ROWS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "ADD COLUMN", "ADD COLUMNS"}


def changes_rows(commit: Mapping[str, Any]) -> bool:
    """Whether a commit of a table's history changed its rows; an overwrite by no rows does, an append of none not."""
    nothing_appended = commit.get("operationParameters", {}).get("mode") == "Append" and (
        commit.get("operationMetrics", {}).get("numOutputRows") == "0"
    )
    return commit["operation"] not in SAME_ROWS and not nothing_appended and commit.get(FILES) != "0"


@dataclass(frozen=True)
class Written:
    """The files that tasks wrote, and the rows that they set aside."""

    files: list[WrittenFile]
    aside: list[Row]


class DeltaTables(dg.ConfigurableResource):
    """The Delta tables of one home, each named by its asset."""

    pyspark: dg.ResourceDependency[PySparkResource]
    root: str
    checkpoints: str
    pinned: dict[str, int] | None = Field(
        default=None, description="Tables, and the Delta versions at which they are read; nothing is written then."
    )

    def as_of(self, versions: Mapping[str, int]) -> "DeltaTables":
        """The tables as they were at these Delta versions, by name: to be read only, and no others."""
        return DeltaTables(pyspark=self.pyspark, root=self.root, checkpoints=self.checkpoints, pinned=dict(versions))

    @property
    def spark(self) -> SparkSession:
        """The session that reads and writes the tables."""
        return self.pyspark.spark_session

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

    def newest_version(self, table: Table) -> int | None:
        """The table's Delta version, from the names in its log; None where there is no table yet."""
        try:
            return DeltaTable(self.uri(table), version=self.version_to_read(table), without_files=True).version()
        except TableNotFoundError:
            return None

    def version(self, table: Table) -> int:
        """The table's newest Delta version."""
        return self.snapshot(table).version

    def table_id(self, table: Table) -> str:
        """Delta's own id of the table: one that is deleted and made anew gets another."""
        return str(self._open(table).metadata().id)

    def snapshot(self, table: Table) -> Snapshot:
        """How many rows the table has, and at which version, from its log."""
        log = self._open(table)
        return Snapshot(rows=log.count(), version=log.version())

    def change_since(self, before: Snapshot, table: Table) -> Change:
        """What became of the table since the snapshot."""
        return Change(before=before, after=self.snapshot(table))

    def history(self, table: Table, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest commits, newest first."""
        log = self._open(table)
        commits = log.history(limit if self.pinned is None else None)  # it also tells what came after its version
        return [commit for commit in commits if commit["version"] <= log.version()][:limit]

    def last_change(self, table: Table) -> int:
        """The newest Delta version that changed rows; compaction, settings and empty batches change none."""
        return self._last_commit(table)["version"]

    def last_note(self, table: Table) -> str | None:
        """The note of the newest commit that changed rows."""
        return self._last_commit(table).get("userMetadata")

    def transaction(self, table: Table, writer: str) -> int | None:
        """The number of the writer's newest transaction in the table."""
        return self._open(table).transaction_version(writer)

    def read(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """The columns of all rows as they are now, or of some; no rows where there is no table yet.

        A column that the table was made without is null, or has its fill value.
        """
        try:
            log = DeltaTable(self.uri(table), version=self.version_to_read(table))
        except TableNotFoundError:
            if self.pinned is not None:
                raise
            return to_arrow_schema(table.columns).empty_table().select(columns)
        if self.pinned is None and lacks_filled(log, table):  # a filter on the column would find no row
            self.create(table)
            log = DeltaTable(self.uri(table))
        return _scanner(log, table, columns, where).to_table()

    def dataframe(self, table: Table, version: int | None = None) -> DataFrame:
        """The table's rows, as they are now or as they were at a Delta version."""
        pinned = self.version_to_read(table)
        if pinned is None:
            self.create(table)
        version = pinned if version is None else version
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(self.uri(table))

    def read_keys(self, table: Table, where: pc.Expression | None = None) -> frozenset[Key]:
        """The keys of all rows, or of some, in the order of the table's keys."""
        rows = self.read(table, table.keys, where)
        return frozenset(zip(*(rows[name].to_pylist() for name in table.keys), strict=True))

    def file_with(self, table: Table, where: pc.Expression) -> str | None:
        """A file of the table that holds a row like this; None where there is no such row."""
        log = self._open(table)
        found = _scanner(log, table, [FILE_NAME], where).head(1)[FILE_NAME].to_pylist()
        return f"{log.table_uri.rstrip('/')}/{found[0]}" if found else None

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

    def append(self, rows: DataFrame, table: Table, *, transaction: tuple[str, int] | None = None) -> None:
        """Add rows; a repeated transaction (writer, number) adds none."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("append")
        if transaction:
            writer = writer.option("txnAppId", transaction[0]).option("txnVersion", transaction[1])
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.save(self.uri(table))

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
                writer_properties=writer_properties(table),
                commit_properties=told,
            )
            try:
                merge.when_matched_update(dict(updates)).when_not_matched_insert_all().execute()
            except CommitFailedError:  # somebody committed meanwhile: what is old and what is new is looked at again
                if attempt == MEETINGS:
                    raise
            else:
                return

    def update(self, rows: DataFrame, table: Table, columns: Sequence[str]) -> None:
        """Give the table's rows with the same keys other values in some columns, in one commit; none is inserted."""
        from delta.tables import DeltaTable

        self.require_writable()
        same_keys = " AND ".join(f"old.{key} = new.{key}" for key in table.keys)
        merge = (
            DeltaTable.forPath(self.spark, self.uri(table))
            .alias("old")
            .merge(rows.alias("new"), same_keys)
            .whenMatchedUpdate(set={f"old.{name}": f"new.{name}" for name in columns})
        )
        with session_settings(self.spark, parquet_settings(table)):
            merge.execute()

    def overwrite(self, rows: DataFrame, table: Table, *, note: str = "") -> None:
        """Put these rows in place of all others, in one commit with a note: readers see old rows or new ones."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("overwrite")
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.option("userMetadata", note).save(self.uri(table))

    def progress_line(self, doing: str, total: int | None, unit: str, *, before: int = 0) -> ProgressLine:
        """How far long work has come, for whoever follows the run's log or sits at the terminal."""
        return ProgressLine(doing, total, unit, dg.get_dagster_logger().info, before=before)

    def write_by_tasks(
        self,
        new: NewRows,
        columns: Sequence[str],
        into: Table,
        *,
        by: Callable[[Iterable[Row]], Iterable[Row | SetAside]],
    ) -> Written:
        """Let tasks write what `by` makes of new rows into the table's folder; nothing is committed yet.

        Each task reads its part of the files and writes files of its own: no image travels between processes. The rows
        that `by` sets aside come back.
        """
        self.create(into)
        executors = self.spark.sparkContext
        parts = executors.defaultParallelism
        progress = self.progress_line("written", new.total, "images", before=new.before)
        with counted(self.spark, progress) as counter:
            task = Task(new, tuple(columns), by, self.uri(into), file_layout(into), parts, counter)
            done = executors.parallelize(range(parts), parts).mapPartitions(task).collect()
        return Written(
            files=[file for files, _ in done for file in files], aside=[row for _, aside in done for row in aside]
        )

    def follow_by_tasks(
        self, upstream: Table, into: Table, *, by: Callable[[NewRows], Sequence[WrittenFile]]
    ) -> Change:
        """Append to `into` the files that `by` makes of the rows that `upstream` got since last time.

        Each batch is one commit, which also says how far `into` follows: a run that was cut off is simply run again.
        """
        before = self.snapshot(into)
        for new in self.new_rows(upstream, into):
            self.append_files(into, by(new), follows=(upstream, new.version))
        self.compact(into)
        return self.change_since(before, into)

    def for_each_batch(
        self, upstream: Table, columns: list[str], checkpoint: str, act: Callable[[DataFrame, tuple[str, int]], None]
    ) -> None:
        """Hand what `upstream` got since last time to `act`, in batches, with a transaction to write under.

        The checkpoint remembers what was handed over; a batch that was cut off is handed over again,
        with the same rows and the same transaction. The writer's name holds the checkpoint's own id,
        so that a checkpoint that starts again never repeats a number that was used.
        """
        self.create(upstream)
        if self._all_handed_over(upstream, checkpoint):
            return  # Spark would take seconds to find that out
        location = f"{self.checkpoints}/{checkpoint}"
        stream = (
            self.spark.readStream.format("delta")
            .option("maxBytesPerTrigger", "512m")
            .option("skipChangeCommits", "true")  # a corrected label is no new image
            .load(self.uri(upstream))
            .select(columns)
        )

        def act_on(batch: DataFrame, number: int) -> None:
            query = batch.sparkSession.sparkContext.getLocalProperty("sql.streaming.queryId")
            act(batch, (f"{checkpoint}/{query}", number))

        query = (
            stream.writeStream.foreachBatch(act_on)
            .option("checkpointLocation", location)
            .trigger(availableNow=True)
            .start()
        )
        try:
            query.awaitTermination()
        finally:
            query.stop()  # Spark would go on writing for a run that was interrupted, when another may have the pool

    def stream_position(self, checkpoint: str) -> StreamPosition | None:
        """Where the stream of this checkpoint goes on; None where it does not."""
        return stream_position(f"{self.checkpoints}/{checkpoint}")

    def follow(
        self,
        upstream: Table,
        columns: list[str],
        into: Table,
        *,
        by: Callable[[DataFrame], DataFrame],
        only: Mapping[str, object] | None = None,
    ) -> Change:
        """Append to `into` what `by` makes of the rows that `upstream` got since last time.

        `only` names a part of the table that follows by itself, by the values of some of its keys: a new
        value starts at upstream's first row. So does a stream that needs files or log entries which are gone.
        """
        only = only or {}
        checkpoint = checkpoint_of(into, only)
        before = self.snapshot(into)
        known = None
        if not self._can_go_on(upstream, checkpoint):
            forget_stream(f"{self.checkpoints}/{checkpoint}")
            # The stream starts from the first row: what is there already is left out.
            there = reduce(lambda rows, key: rows.where(F.col(key) == F.lit(only[key])), only, self.dataframe(into))
            known = there.select([key for key in into.keys if key not in only])

        def append_batch(batch: DataFrame, transaction: tuple[str, int]) -> None:
            if known is not None:
                batch = batch.join(known, on=known.columns, how="left_anti")
            self.append(by(batch), into, transaction=transaction)

        self.for_each_batch(upstream, columns, checkpoint, append_batch)
        self.compact(into)
        return self.change_since(before, into)

    def compaction(self, table: Table, limits: FileSizes = FILE_SIZES) -> Compaction:
        """What compacting the table would do, from its log alone."""
        return plan_compaction([file.size_bytes for file in table_files(self.uri(table)).files], limits)

    def compact(self, table: Table, limits: FileSizes = FILE_SIZES) -> None:
        """Join small files into larger ones, where it pays; the rows stay as they are."""
        from delta.tables import DeltaTable

        self.require_writable()
        compaction = self.compaction(table, limits)
        if not compaction.pays:
            return
        sizes = {
            "spark.databricks.delta.optimize.minFileSize": str(compaction.below_bytes),
            "spark.databricks.delta.optimize.maxFileSize": str(limits.maximum_bytes),
        }
        with session_settings(self.spark, parquet_settings(table) | sizes):
            DeltaTable.forPath(self.spark, self.uri(table)).optimize().executeCompaction()

    def compact_without_spark(self, table: Table) -> None:
        """Join small files into larger ones, where it pays; the rows stay as they are."""
        self.require_writable()
        if plan_compaction([file.size_bytes for file in table_files(self.uri(table)).files], FileSizes()).pays:
            self._open(table).optimize.compact(writer_properties=writer_properties(table))

    def materialized(self, table: Table, change: Change, **metadata: Metadata) -> dg.MaterializeResult:
        """A materialization's answer to Dagster: rows, version, and what the asset adds to it."""
        return dg.MaterializeResult(
            asset_key=table.name,
            metadata={
                "rows_added": change.rows_added,
                **table_metadata(table, self.uri(table), change.after),
                **metadata,
            },
        )

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

    def _last_commit(self, table: Table) -> dict[str, Any]:
        for limit in (RECENT_COMMITS, None):
            commits = self.history(table, limit)
            if found := next(filter(changes_rows, commits), None):
                return found
        return commits[-1]  # what changed rows is so long ago that the log no longer tells

    def _position(self, upstream: Table, checkpoint: str) -> StreamPosition | None:
        position = self.stream_position(checkpoint)
        return position if position and position.table_id == self.table_id(upstream) else None

    def _all_handed_over(self, upstream: Table, checkpoint: str) -> bool:
        position = self._position(upstream, checkpoint)
        return bool(position) and not position.whole and self.last_change(upstream) < position.version

    def _can_go_on(self, upstream: Table, checkpoint: str) -> bool:
        position = self._position(upstream, checkpoint)
        if position is None or not self.tells_since(upstream, position.version - 1):
            return False
        return not position.whole or not why_unreadable(self.uri(upstream), position.version)


def _scanner(log: DeltaTable, table: Table, columns: Sequence[str], where: pc.Expression | None) -> Scanner:
    # Threads that read a delta-rs file system are still at work when Python ends, and abort it (pyarrow 14).
    unthreaded = {"use_threads": False, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    promised = log.to_pyarrow_dataset(schema=to_arrow_schema(table.columns))
    return promised.scanner(columns=list(columns), filter=where, **unthreaded)
