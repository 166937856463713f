"""Delta tables without Spark, and upserts of rows."""

from pathlib import Path

from pyspark.sql import DataFrame

from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table


def tables_at(root: Path | str) -> DeltaTables:
    """The tables in a folder; using Spark raises a KeyError, since its master is not set."""
    return DeltaTables(pyspark=DeltaSpark(spark_config={}), root=str(root), checkpoints=f"{root}/../checkpoints")


def upsert(rows: DataFrame, delta_tables: DeltaTables, table: Table) -> None:
    """Update the rows whose keys the table has, and insert the others."""
    updates = {name: f"new.{name}" for name in table.columns.fieldNames()}
    delta_tables.merge(rows.select(table.columns.fieldNames()).toArrow(), table, updates=updates)
