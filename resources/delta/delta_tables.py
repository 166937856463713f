"""The Delta tables, named by asset: create, read, append, merge, overwrite, compact.

`following.py` finds the rows that a table has not processed yet, and `writing.py` lets tasks write files.

Logs, columns without image bytes, and small merges go through delta-rs, because a sensor has a second and Spark takes
six to start. DataFrames go through Spark, whose session starts on first use.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction
from pyarrow import RecordBatchReader
from pyarrow.dataset import ParquetFragmentScanOptions, Scanner
from pydantic import Field, PrivateAttr
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from resources.dagster_databases import write_without_waiting
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import (
    FILES,
    REPAIR_JOB,
    add_columns,
    changes_rows,
    commit_time,
    fault_of_newest_commit,
    keep_log,
    lacks_filled,
    make,
    open_log,
    position,
    remember,
    rows_per_group,
    table_files,
    table_metadata,
    writer_properties,
)
from resources.delta.executors import runs_locally
from resources.delta.merging import first_keys, joined, rows_with, sql_with
from resources.delta.new_rows import Key
from resources.delta.parquet_files import WrittenFile, open_parquet
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import (
    Change,
    Compaction,
    FileSizes,
    Snapshot,
    Table,
    parquet_settings,
    plan_compaction,
    session_settings,
)
from resources.home import in_use
from resources.progress import ProgressLine

PART = "part"  # of a table, in a commit with a position
EVERY_PART = "every part"  # a forgotten position is that of all parts
NOTE = "userMetadata"  # Delta's name for a note in a commit
WHOLE: Mapping[str, object] = MappingProxyType({})  # no part: the whole table
FILE_NAME = "__filename"  # pyarrow's name for the path of a row's file, relative to the table's folder
MERGED = "merge"  # the writer of merges, in their transactions
MERGE_ATTEMPTS = 10  # if other processes commit at the same time
UPDATE_MEMORY = 8  # delta-rs holds a table that it updates in memory several times, so its bytes count that much
RECENT_COMMITS = 32  # read first, because the commit in question is most often one of them

Metadata = dg.MetadataValue | str | int | float

FILE_SIZES = FileSizes()


def to_part(part: Mapping[str, object]) -> str:
    """The name of a part of a table in commits."""
    return json.dumps(dict(part), sort_keys=True)


@dataclass(frozen=True)
class Execution:
    """The run that uses the tables, its Dagster instance, and the home for its pictures; None to embed them."""

    run: dg.DagsterRun
    instance: dg.DagsterInstance
    picture_home: Path | None


def is_on_postgres(instance: dg.DagsterInstance) -> bool:
    """Whether the instance's runs are in a database that other machines use, too."""
    from dagster_postgres import PostgresRunStorage

    return isinstance(instance.run_storage, PostgresRunStorage)


def is_in_home(instance: dg.DagsterInstance, home: Path) -> bool:
    """Whether the instance's runs are in the home."""
    return (
        not is_on_postgres(instance)
        and not instance.is_ephemeral
        and Path(instance.root_directory).resolve().is_relative_to(home)
    )


class DeltaTables(dg.ConfigurableResource):
    """The Delta tables of one home, each named by its asset."""

    pyspark: dg.ResourceDependency[DeltaSpark]
    root: str
    checkpoints: str
    pinned: dict[str, int] | None = Field(
        default=None, description="Delta versions to read, by table; nothing can be written then."
    )
    home: str = Field(default="", description="The home, which runs lock; none if empty.")
    _execution: Execution | None = PrivateAttr(default=None)

    @property
    def execution(self) -> Execution | None:
        """The run that uses the tables; None outside runs."""
        return self._execution

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["DeltaTables"]:
        """Locks the home during a run: pools let only the runs of one Dagster instance take turns."""
        if context.run is None or context.instance is None:
            yield self
            return
        home = Path(self.home)
        in_home = bool(self.home) and is_in_home(context.instance, home)
        if in_home:
            write_without_waiting(Path(context.instance.root_directory))
        self._execution = Execution(context.run, context.instance, home if in_home else None)
        if not self.home:
            yield self
            return
        with in_use(home, alone=not in_home and not is_on_postgres(context.instance)):
            if context.run.job_name != REPAIR_JOB:
                self.require_whole_logs()
            yield self

    def require_whole_logs(self) -> None:
        """Raises ValueError if the newest commit of a table is damaged; what comes next would build on lost rows."""
        if "://" in self.root or not Path(self.root).is_dir():
            return  # an object appears in object storage when it is complete
        for folder in sorted(Path(self.root).iterdir()):
            if damage := fault_of_newest_commit(str(folder)):
                raise ValueError(
                    f"The table {folder.name} is damaged: {damage}. Launch the job {REPAIR_JOB}, which restores what "
                    f"it can, or restore the home from a backup."
                )

    def as_of(self, versions: Mapping[str, int]) -> "DeltaTables":
        """These tables at these Delta versions, by name; they are read-only."""
        return DeltaTables(pyspark=self.pyspark, root=self.root, checkpoints=self.checkpoints, pinned=dict(versions))

    @property
    def spark(self) -> SparkSession:
        """The session that reads and writes the tables."""
        return self.pyspark.spark_session

    def uri(self, table: Table) -> str:
        """The table's address, for any Delta reader."""
        return f"{self.root}/{table.name}"

    def version_to_read(self, table: Table) -> int | None:
        """The Delta version that the table is pinned at; None for the newest."""
        if self.pinned is None:
            return None
        if table.name not in self.pinned:
            raise ValueError(f"{table.name} is not pinned at a Delta version: {', '.join(self.pinned) or 'none'} are")
        return self.pinned[table.name]

    def require_writable(self) -> None:
        """Raises PermissionError if the tables are pinned at Delta versions."""
        if self.pinned is not None:
            raise PermissionError(f"tables pinned at Delta versions are read-only: {self.pinned}")

    def create(self, table: Table) -> None:
        """Create the table, empty, if it does not exist yet.

        A table that was created with fewer columns, or without a log retention, gets them.
        """
        self.require_writable()
        log = self._load(table, without_files=True)
        if log is None:
            make(self.uri(table), table)
        else:
            keep_log(log)
            add_columns(log, table)
        remember(self.uri(table))

    def make_anew(self, table: Table) -> None:
        """Create a lost table again, empty."""
        self.require_writable()
        make(self.uri(table), table)

    def newest_version(self, table: Table) -> int | None:
        """The table's Delta version, from the file names in its log; None if there is no table yet."""
        log = self._load(table, without_files=True)
        return None if log is None else log.version()

    def version(self, table: Table) -> int:
        """The table's newest Delta version."""
        return self.snapshot(table).version

    def table_id(self, table: Table) -> str:
        """Delta's own id of the table; a table that is deleted and created again has another."""
        return str(self._open(table).metadata().id)

    def newest_commit_id(self, table: Table) -> tuple[str, int, str] | None:
        """The table's id, version, and the time of that version's commit; None if there is no table yet.

        A table that is made anew, or restored from a copy and written again, has other ones.
        """
        log = self._load(table, without_files=True)
        if log is None:
            return None
        return str(log.metadata().id), log.version(), str(commit_time(log, log.version()))

    def snapshot(self, table: Table) -> Snapshot:
        """The table's number of rows and version, from its log."""
        log = self._open(table)
        return Snapshot(rows=log.count(), version=log.version())

    def change_since(self, before: Snapshot, table: Table) -> Change:
        """How the table changed since the snapshot."""
        return Change(before=before, after=self.snapshot(table))

    def history(self, table: Table, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest commits, newest first."""
        log = self._open(table)
        commits = log.history(limit if self.pinned is None else None)  # includes commits after a pinned version
        return [commit for commit in commits if commit["version"] <= log.version()][:limit]

    def newest_commit(self, table: Table, matches: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """The newest commit that matches; None if the log holds none."""
        for limit in (RECENT_COMMITS, None):
            if found := next(filter(matches, self.history(table, limit)), None):
                return found
        return None

    def last_change(self, table: Table) -> int:
        """The newest Delta version that changed rows, which compaction, settings and empty batches do not."""
        return self._last_commit(table)["version"]

    def last_note(self, table: Table) -> str | None:
        """The note of the newest commit that changed rows."""
        return self._last_commit(table).get(NOTE)

    def transaction(self, table: Table, writer: str) -> int | None:
        """The number of a writer's newest transaction in the table, with which older releases recorded positions."""
        return self._open(table).transaction_version(writer)

    def record_transaction(self, table: Table, writer: str, number: int) -> None:
        """Record the number of a writer's transaction, in a commit without rows."""
        log = self._open_to_write(table)
        properties = CommitProperties({FILES: "0"}, app_transactions=[Transaction(writer, number)])
        no_rows = to_arrow_schema(table.columns).empty_table()
        write_deltalake(log, no_rows, mode="append", commit_properties=properties)

    def read(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """The columns of all rows as they are now, or of some; no rows where there is no table yet.

        A column that the table was made without is null, or has its fill value.
        """
        scanner = self._scan(table, columns, where)
        return scanner.to_table() if scanner else to_arrow_schema(table.columns).empty_table().select(columns)

    def batches(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> RecordBatchReader:
        """The same rows, read while they are used: for whole tables."""
        if scanner := self._scan(table, columns, where):
            return scanner.to_reader()
        none = to_arrow_schema(table.columns).empty_table().select(columns)
        return RecordBatchReader.from_batches(none.schema, [])

    def dataframe(self, table: Table, version: int | None = None) -> DataFrame:
        """The table's rows, now or at a Delta version, through Spark."""
        pinned = self.version_to_read(table)
        if pinned is None:
            self.create(table)
        version = pinned if version is None else version
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(self.uri(table))

    def read_keys(
        self, table: Table, where: pc.Expression | None = None, *, names: Sequence[str] = ()
    ) -> frozenset[Key]:
        """The keys of all rows, or of those that match, as tuples in the order of `names` (`table.keys` by default)."""
        names = names or table.keys
        rows = self.read(table, names, where)
        return frozenset(zip(*(rows[name].to_pylist() for name in names), strict=True))

    def file_with(self, table: Table, where: pc.Expression) -> str | None:
        """The address of a file with a row that matches; None if no row does."""
        log = self._open(table)
        found = _scanner(log, table, [FILE_NAME], where).head(1)[FILE_NAME].to_pylist()
        return f"{log.table_uri.rstrip('/')}/{found[0]}" if found else None

    def newest_files(self, table: Table, before: Snapshot) -> list[str]:
        """The files that were added since the snapshot; all files if no rows were."""
        log = self._open(table)
        files = set(log.file_uris())
        if log.count() > before.rows:
            files -= set(DeltaTable(self.uri(table), version=before.version).file_uris())
        return sorted(files)

    def newest(self, table: Table, before: Snapshot, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """Up to `limit` rows of the files that were added since the snapshot; any rows if none were."""
        rows: list[dict[str, Any]] = []
        for file in self.newest_files(table, before):
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(limit, columns=list(columns), use_threads=False):
                    rows += [{**dict.fromkeys(columns), **row} for row in batch.to_pylist()]
                    if len(rows) >= limit:
                        return rows[:limit]
        return rows

    def append(self, rows: DataFrame, table: Table) -> None:
        """Add rows, in one commit."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("append")
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.save(self.uri(table))

    def append_files(
        self,
        table: Table,
        files: Sequence[WrittenFile],
        *,
        follows: tuple[Table, int | None] | None = None,
        part: Mapping[str, object] = WHOLE,
    ) -> int:
        """Add the rows of files that were written into the table's folder, in one commit.

        Args:
            table: The table.
            files: The files; without any, there is a commit only if it records a version of an upstream.
            follows: An upstream, and its version up to which the table now has all rows.
            part: Values of some of the table's keys, if only the rows with these values follow the upstream.

        Returns:
            The table's Delta version afterwards.
        """
        upstream, version = follows or (None, None)
        properties: dict[str, str] = {}
        if upstream and version is not None:
            properties = position(self.uri(upstream), version) | ({PART: to_part(part)} if part else {})
        elif not files:
            return self._open_to_write(table).version()
        return self.commit(table, files, properties)

    def commit(
        self,
        table: Table,
        files: Sequence[WrittenFile],
        properties: Mapping[str, str],
        *,
        mode: Literal["append", "overwrite"] = "append",
    ) -> int:
        """Add files, perhaps none, in one commit with properties; the table's Delta version afterwards.

        With the mode `overwrite`, the files take the place of all others.
        """
        log = self._open_to_write(table)
        now = time.time_ns() // 10**6
        added = {FILES: str(len(files))} if mode == "append" else {}  # an overwrite always changes rows
        log.create_write_transaction(
            [AddAction(file.name, file.size_bytes, {}, now, True, file.statistics) for file in files],
            mode=mode,
            schema=log.schema(),
            commit_properties=CommitProperties({**added, **properties}),
        )
        return self._open(table).version()

    def merge(
        self,
        rows: pa.Table,
        table: Table,
        *,
        updates: Mapping[str, str],
        where: str = "",
        follows: tuple[Table, int] | None = None,
    ) -> None:
        """Insert the rows with new keys, and update those with existing keys, in one commit.

        Args:
            rows: Rows with all columns of the table, or, with `where`, with the columns that it and `updates` name.
            table: The table.
            updates: SQL expressions for columns of rows with existing keys, over `old.column` and `new.column`.
            where: A condition to update rows by, instead of their keys; then nothing is inserted.
            follows: An upstream, and its version up to which the table now has all rows.
        """
        properties = position(self.uri(follows[0]), follows[1]) if follows else {}
        for attempt in range(1, MERGE_ATTEMPTS + 1):
            log = self._open_to_write(table)
            try:
                if where:
                    groups = rows_per_group(table_files(self.uri(table))) if table.binary_columns else None
                    _update_where(log, rows, updates, where, writer_properties(table, groups))
                else:
                    _merge(log, table, rows, updates, properties)
            except CommitFailedError:  # another process committed first: compare the keys again
                if attempt == MERGE_ATTEMPTS:
                    raise
            else:
                return

    def update(self, rows: Sequence[Row], table: Table, columns: Sequence[str]) -> None:
        """Update some columns of the rows with the same keys, in one commit; nothing is inserted.

        Args:
            rows: Rows with the table's keys and these columns.
            table: The table.
            columns: The columns to update.
        """
        from delta.tables import DeltaTable

        self.require_writable()
        names = [*table.keys, *columns]
        new = pa.Table.from_pylist([*rows], to_arrow_schema(StructType([table.columns[name] for name in names])))
        same_keys = " AND ".join(f"old.{key} = new.{key}" for key in table.keys)
        files = table_files(self.uri(table))
        if runs_locally(self.pyspark, UPDATE_MEMORY * files.size_bytes):
            self.merge(new, table, updates={name: f"new.{name}" for name in columns}, where=same_keys)
            return
        merge = (
            DeltaTable.forPath(self.spark, self.uri(table))
            .alias("old")
            .merge(self.spark.createDataFrame(new).alias("new"), same_keys)
            .whenMatchedUpdate(set={f"old.{name}": f"new.{name}" for name in columns})
        )
        with session_settings(self.spark, parquet_settings(table)):
            merge.execute()

    def overwrite_rows(self, rows: pa.Table, table: Table, *, note: str = "") -> None:
        """Like `overwrite`, without Spark: for rows without images that fit into memory."""
        write_deltalake(
            self._open_to_write(table),
            rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns)),
            mode="overwrite",
            writer_properties=writer_properties(table),
            commit_properties=CommitProperties({NOTE: note}),
        )

    def replace_rows(self, rows: pa.Table, table: Table, first_keys: pa.Array, *, note: str = "") -> None:
        """Replace the rows with these values of the first key, sorted, in one commit with a note.

        Only files with such rows are rewritten. `rows` have no other values of that key.
        """
        write_deltalake(
            self._open_to_write(table),
            rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns)),
            mode="overwrite",
            predicate=sql_with(table.keys[0], first_keys),
            writer_properties=writer_properties(table),
            commit_properties=CommitProperties({NOTE: note}),
        )

    def overwrite(self, rows: DataFrame, table: Table, *, note: str = "") -> None:
        """Replace all rows, in one commit with a note: readers see the old rows or the new ones."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("overwrite")
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.option(NOTE, note).save(self.uri(table))

    def progress_line(self, doing: str, total: int | None, unit: str, *, before: int = 0) -> ProgressLine:
        """A progress line on the terminal, or in the run's log if there is no terminal."""
        return ProgressLine(doing, total, unit, dg.get_dagster_logger().info, before=before)

    def compaction(self, table: Table, limits: FileSizes = FILE_SIZES) -> Compaction:
        """What compacting the table would rewrite, from its log alone."""
        return plan_compaction([file.size_bytes for file in table_files(self.uri(table)).files], limits)

    def compact(self, table: Table, limits: FileSizes = FILE_SIZES) -> None:
        """Join small files into larger ones, if that pays: through delta-rs, or Spark if the files are many.

        Larger files stay as they are, so a table that grows is not rewritten again and again.
        """
        from delta.tables import DeltaTable

        self.require_writable()
        compaction = self.compaction(table, limits)
        if not compaction.pays:
            return
        if runs_locally(self.pyspark, compaction.rewritten_bytes):
            self._open(table).optimize.compact(
                # delta-rs joins all files below this size: none that is larger than the small ones together.
                target_size=min(compaction.rewritten_bytes + 1, limits.maximum_bytes),
                max_concurrent_tasks=1,
                writer_properties=writer_properties(table, rows_per_group(table_files(self.uri(table)))),
            )
            return
        sizes = {
            "spark.databricks.delta.optimize.minFileSize": str(compaction.below_bytes),
            "spark.databricks.delta.optimize.maxFileSize": str(limits.maximum_bytes),
        }
        with session_settings(self.spark, parquet_settings(table) | sizes):
            DeltaTable.forPath(self.spark, self.uri(table)).optimize().executeCompaction()

    def compact_without_spark(self, table: Table) -> None:
        """Join all files into larger ones through delta-rs, if that pays: for tables that stay small."""
        self.require_writable()
        if self.compaction(table).pays:
            self._open(table).optimize.compact(writer_properties=writer_properties(table))

    def materialized(self, table: Table, change: Change, **metadata: Metadata) -> dg.MaterializeResult:
        """The materialization of the table's asset: its size, version and lineage, and the asset's own metadata."""
        return dg.MaterializeResult(
            asset_key=table.name,
            metadata={
                "rows_added": change.rows_added,
                **table_metadata(table, self.uri(table), change.after),
                **metadata,
            },
        )

    def _load(self, table: Table, *, without_files: bool = False) -> DeltaTable | None:
        return open_log(self.uri(table), self.version_to_read(table), without_files=without_files)

    def _scan(self, table: Table, columns: Sequence[str], where: pc.Expression | None) -> Scanner | None:
        log = self._load(table)
        if log is None:
            return None
        if self.pinned is None and lacks_filled(log, table):  # a filter on the column would find no row
            self.create(table)
            log = DeltaTable(self.uri(table))
        return _scanner(log, table, columns, where)

    def _open(self, table: Table) -> DeltaTable:
        if log := self._load(table):
            return log
        self.create(table)
        return DeltaTable(self.uri(table))

    def _open_to_write(self, table: Table) -> DeltaTable:
        self.require_writable()
        log = self._open(table)
        remember(self.uri(table))
        return self._open(table) if add_columns(log, table) else log

    def _last_commit(self, table: Table) -> dict[str, Any]:
        # The log may not go back to the commit that changed rows.
        return self.newest_commit(table, changes_rows) or self.history(table)[-1]


def _merge(
    log: DeltaTable, table: Table, rows: pa.Table, updates: Mapping[str, str], properties: Mapping[str, str]
) -> None:
    new = rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns))
    key = table.keys[0]
    keys = first_keys(new, key)
    settings: dict[str, Any] = {"mode": "append"}
    if len(keys) and _scanner(log, table, [key], rows_with(key, keys)).head(1).num_rows:
        old = _scanner(log, table, new.column_names, rows_with(key, keys)).to_table()
        new = joined(old, new, table.keys, updates)
        settings = {"mode": "overwrite", "predicate": sql_with(key, keys)}
    # Of two processes that read the same version, the second one to commit a transaction of this name fails.
    transactions = [Transaction(MERGED, log.version())]
    write_deltalake(
        log,
        new,
        writer_properties=writer_properties(table),
        commit_properties=CommitProperties(dict(properties), app_transactions=transactions),
        **settings,
    )


def _update_where(
    log: DeltaTable, rows: pa.Table, updates: Mapping[str, str], where: str, properties: WriterProperties
) -> None:
    merge = log.merge(rows, where, source_alias="new", target_alias="old", writer_properties=properties)
    merge.when_matched_update(dict(updates)).execute()


def _scanner(log: DeltaTable, table: Table, columns: Sequence[str], where: pc.Expression | None) -> Scanner:
    # Threads that read through delta-rs may still run when Python exits, and abort it (pyarrow 14).
    unthreaded = {"use_threads": False, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    promised = log.to_pyarrow_dataset(schema=to_arrow_schema(table.columns))
    return promised.scanner(columns=list(columns), filter=where, **unthreaded)
