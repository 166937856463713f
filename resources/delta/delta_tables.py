"""Delta tables named by asset: create, read, append, merge, follow, compact."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import dagster as dg
from dagster_pyspark import PySparkResource
from pydantic import Field
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_log import table_files, why_unreadable
from resources.delta.new_rows import NewRows, Task
from resources.delta.parquet_files import WrittenFile
from resources.delta.spark_session import cached
from resources.delta.table import Change, Snapshot, Table
from resources.delta.table_layout import Compaction, FileSizes, advise, file_layout, parquet_settings, session_settings
from resources.delta.table_metadata import table_metadata
from resources.delta.task_counts import counted
from resources.delta.thin_tables import FILES, RECENT_COMMITS, ThinTables
from resources.files.object_storage import fresh
from resources.progress import ProgressLine


@dataclass(frozen=True)
class StreamPosition:
    """The Delta version that a stream goes on from; `whole` when it is still in the rows that were there at first."""

    version: int
    whole: bool
    table_id: str  # Delta's own: a table that was made anew has another


def stream_position(checkpoint: str) -> StreamPosition | None:
    """Where the stream of this checkpoint goes on; None where no batch of it was ever committed."""
    system, folder = fresh(checkpoint)
    names = [path.rpartition("/")[2] for path in system.glob(f"{folder}/commits/[0-9]*")]
    if not names:
        return None
    _, _, offset = system.cat_file(f"{folder}/offsets/{max(names, key=int)}").decode().split("\n")
    said = json.loads(offset)
    return StreamPosition(said["reservoirVersion"], said["isStartingVersion"], said["reservoirId"])


def forget_stream(checkpoint: str) -> None:
    """Delete the checkpoint, if there is one: its stream starts from the first row."""
    system, folder = fresh(checkpoint)
    if system.exists(folder):
        system.rm(folder, recursive=True)


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

    @property
    def thin(self) -> ThinTables:
        """The same tables, read without Spark."""
        return ThinTables(root=self.root, pinned=self.pinned)

    def uri(self, table: Table) -> str:
        """Where the table lies, for any Delta reader."""
        return self.thin.uri(table)

    def create(self, table: Table) -> None:
        """Make the table, empty, where it does not exist yet; one that was made with fewer columns gets the others."""
        self.thin.create(table)

    def read(self, table: Table, version: int | None = None) -> DataFrame:
        """The table's rows, as they are now or as they were at a Delta version."""
        pinned = self.thin.version_to_read(table)
        if pinned is None:
            self.create(table)
        version = pinned if version is None else version
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(self.uri(table))

    def version(self, table: Table) -> int:
        """The table's newest Delta version."""
        return self.thin.snapshot(table).version

    def last_change(self, table: Table) -> int:
        """The newest Delta version that changed rows; compaction, settings and empty batches change none."""
        return self._last_commit(table)["version"]

    def snapshot(self, table: Table) -> Snapshot:
        """How many rows the table has, from its log, and at which version."""
        return self.thin.snapshot(table)

    def change_since(self, before: Snapshot, table: Table) -> Change:
        """What became of the table since the snapshot."""
        return Change(before=before, after=self.snapshot(table))

    def append(self, rows: DataFrame, table: Table, *, transaction: tuple[str, int] | None = None) -> None:
        """Add rows; a repeated transaction (writer, number) adds none."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("append")
        if transaction:
            writer = writer.option("txnAppId", transaction[0]).option("txnVersion", transaction[1])
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.save(self.uri(table))

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
        for new in self.thin.new_rows(upstream, into):
            self.thin.append_files(into, by(new), follows=(upstream, new.version))
        self.compact(into)
        return self.change_since(before, into)

    def overwrite(self, rows: DataFrame, table: Table, *, note: str = "") -> None:
        """Put these rows in place of all others, in one commit with a note: readers see old rows or new ones."""
        self.create(table)
        writer = rows.select(table.columns.fieldNames()).write.format("delta").mode("overwrite")
        with session_settings(rows.sparkSession, parquet_settings(table)):
            writer.option("userMetadata", note).save(self.uri(table))

    def last_note(self, table: Table) -> str | None:
        """The note of the newest commit that changed rows."""
        return self._last_commit(table).get("userMetadata")

    def merge(self, rows: DataFrame, table: Table) -> None:
        """Update the rows whose keys are there, insert the others; nothing is committed for no rows."""
        from delta.tables import DeltaTable

        self.create(table)
        with cached(rows.select(table.columns.fieldNames())) as rows:
            if rows.isEmpty():
                return
            same_keys = " AND ".join(f"old.{key} = new.{key}" for key in table.keys)
            merge = (
                DeltaTable.forPath(self.spark, self.uri(table))
                .alias("old")
                .merge(rows.alias("new"), same_keys)
                .whenMatchedUpdateAll()
                .whenNotMatchedInsertAll()
            )
            with session_settings(self.spark, parquet_settings(table)):
                merge.execute()

    def update(self, rows: DataFrame, table: Table, columns: Sequence[str]) -> None:
        """Give the table's rows with the same keys other values in some columns, in one commit; none is inserted."""
        from delta.tables import DeltaTable

        self.thin.require_writable()
        same_keys = " AND ".join(f"old.{key} = new.{key}" for key in table.keys)
        merge = (
            DeltaTable.forPath(self.spark, self.uri(table))
            .alias("old")
            .merge(rows.alias("new"), same_keys)
            .whenMatchedUpdate(set={f"old.{name}": f"new.{name}" for name in columns})
        )
        with session_settings(self.spark, parquet_settings(table)):
            merge.execute()

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
        checkpoint = "/".join([into.name, *map(str, only.values())])
        before = self.snapshot(into)
        known = None
        if not self._can_go_on(upstream, checkpoint):
            forget_stream(f"{self.checkpoints}/{checkpoint}")
            # The stream starts from the first row: what is there already is left out.
            there = reduce(lambda rows, key: rows.where(F.col(key) == F.lit(only[key])), only, self.read(into))
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
        return advise([file.size_bytes for file in table_files(self.uri(table)).files], limits)

    def compact(self, table: Table, limits: FileSizes = FILE_SIZES) -> None:
        """Join small files into larger ones, where it pays; the rows stay as they are."""
        from delta.tables import DeltaTable

        self.thin.require_writable()
        compaction = self.compaction(table, limits)
        if not compaction.pays:
            return
        sizes = {
            "spark.databricks.delta.optimize.minFileSize": str(compaction.below_bytes),
            "spark.databricks.delta.optimize.maxFileSize": str(limits.maximum_bytes),
        }
        with session_settings(self.spark, parquet_settings(table) | sizes):
            DeltaTable.forPath(self.spark, self.uri(table)).optimize().executeCompaction()

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

    def _last_commit(self, table: Table) -> dict[str, Any]:
        for limit in (RECENT_COMMITS, None):
            commits = self.thin.history(table, limit)
            if found := next(filter(changes_rows, commits), None):
                return found
        return commits[-1]  # what changed rows is so long ago that the log no longer tells

    def _position(self, upstream: Table, checkpoint: str) -> StreamPosition | None:
        position = self.stream_position(checkpoint)
        return position if position and position.table_id == self.thin.table_id(upstream) else None

    def _all_handed_over(self, upstream: Table, checkpoint: str) -> bool:
        position = self._position(upstream, checkpoint)
        return bool(position) and not position.whole and self.last_change(upstream) < position.version

    def _can_go_on(self, upstream: Table, checkpoint: str) -> bool:
        position = self._position(upstream, checkpoint)
        if position is None or not self.thin.tells_since(upstream, position.version - 1):
            return False
        return not position.whole or not why_unreadable(self.uri(upstream), position.version)
