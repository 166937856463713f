"""The Delta tables, named by asset: append, merge, overwrite, compact.

`following.py` finds the rows that a table has not processed yet, and `writing.py` lets tasks write files.
Rows without images, and small merges, are written through delta-rs; DataFrames through Spark.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from resources.delta.arrow_rows import Row
from resources.delta.delta_log import (
    FILES,
    position,
    rows_per_group,
    table_files,
    table_metadata,
    writer_properties,
)
from resources.delta.executors import runs_locally
from resources.delta.merging import first_keys, joined, rows_with, sql_with
from resources.delta.parquet_files import WrittenFile
from resources.delta.scans import scan
from resources.delta.stored_tables import NOTE, StoredTables, files_of
from resources.delta.table import (
    Change,
    Compaction,
    FileSizes,
    Table,
    parquet_settings,
    plan_compaction,
    session_settings,
)
from resources.progress import ProgressLine

PART = "part"  # of a table, in a commit with a position
EVERY_PART = "every part"  # a forgotten position is that of all parts
WHOLE: Mapping[str, object] = MappingProxyType({})  # no part: the whole table
MERGED = "merge"  # the writer of merges, in their transactions
MERGE_ATTEMPTS = 10  # if other processes commit at the same time
UPDATE_MEMORY = 8  # delta-rs holds a table that it updates in memory several times, so its bytes count that much
FILE_SIZES = FileSizes()

Metadata = dg.MetadataValue | str | int | float


def to_part(part: Mapping[str, object]) -> str:
    """The name of a part of a table in commits."""
    return json.dumps(dict(part), sort_keys=True)


class DeltaTables(StoredTables):
    """The Delta tables of one home, each named by its asset."""

    def record_transaction(self, table: Table, writer: str, number: int) -> None:
        """Record the number of a writer's transaction, in a commit without rows."""
        log = self._open_to_write(table)
        properties = CommitProperties({FILES: "0"}, app_transactions=[Transaction(writer, number)])
        no_rows = to_arrow_schema(table.columns).empty_table()
        write_deltalake(log, no_rows, mode="append", commit_properties=properties)

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
        follows: tuple[Table, int] | None = None,
    ) -> None:
        """Insert the rows with new keys, and update those with existing keys, in one commit.

        Args:
            rows: Rows with all columns of the table.
            table: The table.
            updates: SQL expressions for columns of rows with existing keys, over `old.column` and `new.column`.
            follows: An upstream, and its version up to which the table now has all rows.
        """
        properties = position(self.uri(follows[0]), follows[1]) if follows else {}
        self._retry(table, lambda log: _merge(log, table, rows, updates, properties))

    def update_where(self, rows: pa.Table, table: Table, *, updates: Mapping[str, str], where: str) -> None:
        """Update the rows that match one of these rows, in one commit; nothing is inserted.

        Args:
            rows: Rows with the columns that `where` and `updates` name.
            table: The table.
            updates: SQL expressions for columns, over `old.column` and `new.column`.
            where: The SQL condition on which a row is updated, over the same columns.
        """

        def update(log: DeltaTable) -> None:
            groups = rows_per_group(table_files(self.uri(table))) if table.binary_columns else None
            _update_where(log, rows, updates, where, writer_properties(table, groups))

        self._retry(table, update)

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
            self.update_where(new, table, updates={name: f"new.{name}" for name in columns}, where=same_keys)
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
            self._open_to_write(table).optimize.compact(
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
            self._open_to_write(table).optimize.compact(writer_properties=writer_properties(table))

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

    def _retry(self, table: Table, commit: Callable[[DeltaTable], None]) -> None:
        """Commits to the table's newest version; tries again if another process commits first."""
        for attempt in range(1, MERGE_ATTEMPTS + 1):
            log = self._open_to_write(table)
            try:
                commit(log)
            except CommitFailedError:
                if attempt == MERGE_ATTEMPTS:
                    raise
            else:
                return

    def _open_to_write(self, table: Table) -> DeltaTable:
        self.require_writable()
        self.create(table)
        # Not the shared log: a commit changes the object that it is made with.
        return DeltaTable(self.uri(table))


def _merge(
    log: DeltaTable, table: Table, rows: pa.Table, updates: Mapping[str, str], properties: Mapping[str, str]
) -> None:
    new = rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns))
    key = table.keys[0]
    keys = first_keys(new, key)
    settings: dict[str, Any] = {"mode": "append"}
    files = files_of(log, table)
    if len(keys) and scan(files, [key], rows_with(key, keys)).head(1).num_rows:
        old = scan(files, new.column_names, rows_with(key, keys)).to_table()
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
