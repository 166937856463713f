"""The Delta tables by delta-rs, without Spark: their logs, thin columns, small merges.

A sensor has a second, and Spark takes six to start; a merge of a few rows takes a tenth of a second here.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, WriterProperties
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction
from pyspark.sql.pandas.types import to_arrow_schema

from resources.delta_log import STATISTICS_PROPERTY
from resources.parquet_files import WrittenFile
from resources.parquet_footers import open_parquet
from resources.tables import Snapshot, Table

WRITTEN = "WRITE"  # the operation of a commit that adds rows
WRITER, NUMBER = "writer", "transaction"  # what a commit of files says of whose it is
RECENT_COMMITS = 32  # what is asked for is most often among them


class ThinTables(dg.ConfigurableResource):
    """The Delta tables of one home; image bytes are left to Spark, but for a few rows to look at."""

    root: str

    def uri(self, table: Table) -> str:
        """Where the table lies, for any Delta reader."""
        return f"{self.root}/{table.name}"

    def create(self, table: Table) -> None:
        """Make the table, empty, where it does not exist yet."""
        if not DeltaTable.is_deltatable(self.uri(table)):
            DeltaTable.create(
                self.uri(table),
                schema=Schema.from_json(table.columns.json()),
                mode="ignore",
                configuration={STATISTICS_PROPERTY: ",".join(table.statistics_columns)},
            )

    def history(self, table: Table, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest commits, newest first."""
        return self._open(table).history(limit)

    def snapshot(self, table: Table) -> Snapshot:
        """How many rows the table has, and at which version, from its log."""
        log = self._open(table)
        return Snapshot(rows=log.count(), version=log.version())

    def read(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """The columns of all rows as they are now, or of some; no rows where there is no table yet."""
        try:
            log = DeltaTable(self.uri(table))
        except TableNotFoundError:
            return to_arrow_schema(table.columns).empty_table().select(columns)
        # Threads that read a delta-rs file system are still at work when Python ends, and abort it (pyarrow 14).
        return log.to_pyarrow_dataset().scanner(columns=list(columns), filter=where, use_threads=False).to_table()

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
                    rows += batch.to_pylist()
                    if len(rows) >= limit:
                        return rows[:limit]
        return rows

    def transaction(self, table: Table, writer: str) -> int | None:
        """The number of the writer's newest transaction in the table."""
        return self._open(table).transaction_version(writer)

    def added_since(self, table: Table, version: int, columns: Sequence[str]) -> pa.Table:
        """The columns of the rows that commits after the version added; compaction adds none."""
        log = self._open(table)
        files: set[str] = set()
        if log.version() > version:
            for commit in log.history(log.version() - version):
                if commit["operation"] == WRITTEN:
                    now, before = (DeltaTable(self.uri(table), version=commit["version"] - back) for back in (0, 1))
                    files |= set(now.file_uris()) - set(before.file_uris())
        rows = [to_arrow_schema(table.columns).empty_table().select(columns)]
        for file in sorted(files):
            with open_parquet(file) as parquet:
                rows.append(parquet.read(list(columns), use_threads=False).cast(rows[0].schema))
        return pa.concat_tables(rows)

    def append_files(
        self, table: Table, files: Sequence[WrittenFile], *, transaction: tuple[str, int] | None = None
    ) -> int:
        """Add the rows of files that lie in the table's folder, in one commit; the table's version then.

        No files, no commit; a repeated transaction (writer, number) adds none.
        """
        log = self._open(table)
        if not files or (transaction and self._is_committed(table, *transaction)):
            return log.version()
        now = time.time_ns() // 10**6
        log.create_write_transaction(
            [AddAction(file.name, file.size_bytes, {}, now, True, file.statistics) for file in files],
            mode="append",
            schema=log.schema(),
            # Its own field for this is left out by delta-rs 1.5 where files are committed.
            commit_properties=CommitProperties({WRITER: transaction[0], NUMBER: str(transaction[1])})
            if transaction
            else None,
        )
        return self._open(table).version()

    def merge(
        self, rows: pa.Table, table: Table, *, updates: Mapping[str, str], transaction: tuple[str, int] | None = None
    ) -> None:
        """Insert the rows whose keys are new; where they are there, update by expressions of `old` and `new`."""
        merge = self._open(table).merge(
            rows.select(table.columns.fieldNames()).cast(to_arrow_schema(table.columns)),
            " AND ".join(f"old.{key} = new.{key}" for key in table.keys),
            source_alias="new",
            target_alias="old",
            writer_properties=WriterProperties(compression="ZSTD"),
            commit_properties=CommitProperties(app_transactions=[Transaction(*transaction)] if transaction else None),
        )
        merge.when_matched_update(dict(updates)).when_not_matched_insert_all().execute()

    def _is_committed(self, table: Table, writer: str, number: int) -> bool:
        for limit in (RECENT_COMMITS, None):
            for commit in self.history(table, limit):
                if commit.get(WRITER) == writer:
                    return int(commit[NUMBER]) >= number
        return False

    def _open(self, table: Table) -> DeltaTable:
        self.create(table)
        return DeltaTable(self.uri(table))
