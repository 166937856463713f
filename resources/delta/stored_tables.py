"""The Delta tables of a home, to read: where they are, their versions and commits, and their rows.

Logs, and columns without image bytes, are read through delta-rs, because a sensor has a second and Spark takes six to
start. DataFrames are read through Spark, whose session starts on first use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow import RecordBatchReader
from pyarrow.dataset import FileSystemDataset
from pydantic import Field, PrivateAttr
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from resources.dagster_databases import write_without_waiting
from resources.delta.delta_log import (
    REPAIR_JOB,
    add_columns,
    changes_rows,
    commit_time,
    create_table,
    fault_of_newest_commit,
    keep_log,
    lacks_filled,
    open_log,
    remember,
)
from resources.delta.new_rows import Key
from resources.delta.parquet_files import open_parquet
from resources.delta.scans import dataset, scan, scan_in_batches
from resources.delta.shared_logs import shared_log
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import (
    Change,
    Snapshot,
    Table,
)
from resources.home import in_use

NOTE = "userMetadata"  # Delta's name for a note in a commit
FILE_NAME = "__filename"  # pyarrow's name for the path of a row's file, relative to the table's folder
RECENT_COMMITS = 32  # read first, because the commit in question is most often one of them


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


class StoredTables(dg.ConfigurableResource):
    """The Delta tables of one home, each named by its asset."""

    pyspark: dg.ResourceDependency[DeltaSpark]
    root: str
    pinned: dict[str, int] | None = Field(
        default=None, description="Delta versions to read, by table; nothing can be written then."
    )
    home: str = Field(default="", description="The home, which runs lock; none if empty.")
    _execution: Execution | None = PrivateAttr(default=None)

    @property
    def execution(self) -> Execution | None:
        """The run that uses the tables; None outside runs."""
        return self._execution

    @property
    def picture_home(self) -> Path | None:
        """The home in whose folder a run stores its pictures; None where they are embedded in metadata."""
        return self._execution.picture_home if self._execution else None

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Self]:
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

    def as_of(self, versions: Mapping[str, int]) -> Self:
        """These tables at these Delta versions, by name; they are read-only."""
        return type(self)(pyspark=self.pyspark, root=self.root, pinned=dict(versions))

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

    def holds(self, table: Table) -> bool:
        """Whether the table can be read: not if the others are pinned at versions of a time when it did not exist."""
        return self.pinned is None or table.name in self.pinned

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
            create_table(self.uri(table), table)
        else:
            keep_log(log)
            add_columns(log, table)
        remember(self.uri(table))

    def recreate(self, table: Table) -> None:
        """Create a lost table again, empty."""
        self.require_writable()
        create_table(self.uri(table), table)

    def newest_version(self, table: Table) -> int | None:
        """The table's newest Delta version, from its log; None if there is no table yet."""
        log = self._load(table, without_files=True)
        return None if log is None else log.version()

    def version(self, table: Table) -> int:
        """The table's newest Delta version."""
        return self._open(table).version()

    def table_id(self, table: Table) -> str:
        """Delta's own id of the table; a table that is deleted and created again has another."""
        return str(self._open(table).metadata().id)

    def newest_commit_id(self, table: Table) -> tuple[str, int, str] | None:
        """The table's id, version, and the time of that version's commit; None if there is no table yet.

        A table that is recreated, or restored from a copy and written again, has other ones.
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

    def read(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """The columns of all rows as they are now, or of some; no rows where there is no table yet.

        A column that the table was created without is null, or has its fill value.
        """
        if log := self._read_log(table):
            return scan(files_of(log, table), columns, where).to_table()
        return to_arrow_schema(table.columns).empty_table().select(columns)

    def batches(self, table: Table, columns: Sequence[str], where: pc.Expression | None = None) -> RecordBatchReader:
        """The same rows, read while they are used: for whole tables."""
        log = self._read_log(table)
        schema = to_arrow_schema(StructType([table.columns[name] for name in columns]))
        return RecordBatchReader.from_batches(
            schema, scan_in_batches(files_of(log, table), columns, where) if log else []
        )

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
        found = scan(files_of(log, table), [FILE_NAME], where).head(1)[FILE_NAME].to_pylist()
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

    def _load(self, table: Table, *, without_files: bool = False) -> DeltaTable | None:
        version = self.version_to_read(table)
        if version is None:
            return shared_log(self.uri(table), without_files=without_files)
        return open_log(self.uri(table), version, without_files=without_files)

    def _read_log(self, table: Table) -> DeltaTable | None:
        log = self._load(table)
        if log and self.pinned is None and lacks_filled(log, table):  # a filter on the column would find no row
            self.create(table)
            log = DeltaTable(self.uri(table))
        return log

    def _open(self, table: Table) -> DeltaTable:
        if log := self._load(table):
            return log
        self.create(table)
        return DeltaTable(self.uri(table))

    def _last_commit(self, table: Table) -> dict[str, Any]:
        # The log may not go back to the commit that changed rows.
        return self.newest_commit(table, changes_rows) or self.history(table)[-1]


def files_of(log: DeltaTable, table: Table) -> FileSystemDataset:
    """The table's files, with the columns that it has now."""
    return dataset(log, to_arrow_schema(table.columns))
