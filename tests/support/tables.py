"""Delta tables without Spark, and small tables of shells (without Spark) and flowers (with Spark)."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType, TimestampType

from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import new_rows
from resources.delta.parquet_files import write_files
from resources.delta.spark_session import DeltaSpark, ExecutorName
from resources.delta.table import Table, file_layout

FIELDS = (("name", StringType()), ("number", LongType()), ("seen", TimestampType()), ("content", BinaryType()))
SHELLS = Table("shells", keys=("name",), columns=StructType([StructField(*field) for field in FIELDS]))
NECKLACES = Table("necklaces", keys=("name",), columns=SHELLS.columns)
NOON = datetime(2026, 6, 1, 12, 0, 0, 123456, UTC)
COLUMNS = StructType(
    [StructField("name", StringType()), StructField("number", LongType()), StructField("content", BinaryType())]
)
FLOWERS = Table("flowers", keys=("name",), columns=COLUMNS)
BOUQUETS = Table("bouquets", keys=("name",), columns=COLUMNS)
FOLLOWED = COLUMNS.fieldNames()


def tables_at(root: Path | str) -> DeltaTables:
    """The tables in a folder; using Spark raises a KeyError, since its master is not set."""
    return DeltaTables(pyspark=DeltaSpark(spark_config={}), root=str(root))


def with_executor(tables: DeltaTables, executor: ExecutorName) -> DeltaTables:
    """The same tables, whose work an executor does."""
    session = DeltaSpark(spark_config=tables.pyspark.spark_config, executor=executor)
    return DeltaTables(pyspark=session, root=tables.root)


def upsert(rows: DataFrame, delta_tables: DeltaTables, table: Table) -> None:
    """Update the rows whose keys the table has, and insert the others."""
    updates = {name: f"new.{name}" for name in table.columns.fieldNames()}
    delta_tables.merge(rows.select(table.columns.fieldNames()).toArrow(), table, updates=updates)


def pass_time(delta_tables: DeltaTables, time: timedelta) -> None:
    """Make it as if so much more time had passed since each file of the ledger was last seen."""
    rows = delta_tables.read(IMAGE_FILES, IMAGE_FILES.columns.fieldNames())
    earlier = f"old.last_seen - INTERVAL '{time.total_seconds():.0f} seconds'"
    delta_tables.merge(rows, IMAGE_FILES, updates={"last_seen": earlier})


def shell(name: str | None, number: int | None = 1, content: bytes | None = b"\x00" * 500) -> dict:
    return {"name": name, "number": number, "seen": NOON, "content": content}


def add(delta_tables: DeltaTables, *rows: dict) -> int:
    delta_tables.create(SHELLS)
    files = list(write_files(rows, delta_tables.uri(SHELLS), file_layout(SHELLS)))
    return delta_tables.append_files(SHELLS, files)


def follow_shells(
    delta_tables: DeltaTables, batch_bytes: int = 1 << 30, stop_before_commit: bool = False
) -> list[list[str]]:
    """The names in each batch that necklaces get from shells; they are committed."""
    batches = []
    for new in new_rows(delta_tables, SHELLS, NECKLACES, batch_bytes):
        rows = new.read(["name", "number", "seen", "content"]).to_pylist()
        batches.append(sorted(row["name"] for row in rows))
        if stop_before_commit:
            break
        files = list(write_files(rows, delta_tables.uri(NECKLACES), file_layout(NECKLACES)))
        delta_tables.append_files(NECKLACES, files, follows=(SHELLS, new.version))
    return batches


def flowers(delta_tables: DeltaTables, *names: str, number: int = 1) -> DataFrame:
    rows = [(name, number, b"\x00" * 2000) for name in names]
    return delta_tables.spark.createDataFrame(rows, COLUMNS).coalesce(1)


def names(delta_tables: DeltaTables, table: Table) -> list[str]:
    return sorted(row.name for row in delta_tables.dataframe(table).select("name").collect())
