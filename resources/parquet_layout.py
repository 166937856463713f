"""How a table's Parquet files are written: the session's settings, for a while, or a writer's own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from resources.parquet_files import FileLayout
from resources.tables import Table

ROW_GROUP_BYTES = 32 * 1024 * 1024
ROW_CHECK_MIN, ROW_CHECK_MAX = 4, 32


def parquet_settings(table: Table) -> dict[str, str]:
    """The settings that the table's files are written with, by appends, merges and compaction alike.

    Delta drops a writer's options but for the codec; what the session's configuration holds reaches Parquet.
    """
    settings = {
        "spark.sql.parquet.compression.codec": table.codec,
        "parquet.block.size": str(ROW_GROUP_BYTES),
    }
    if table.binary_columns:
        # Parquet looks at a row group's size after this many rows; its default of 100 lets large images fill gigabytes.
        settings["parquet.page.size.row.check.min"] = str(ROW_CHECK_MIN)
        settings["parquet.page.size.row.check.max"] = str(ROW_CHECK_MAX)
    for column in table.binary_columns:
        settings[f"parquet.enable.dictionary#{column}"] = "false"  # no image is there twice
        settings[f"parquet.column.statistics.enabled#{column}"] = "false"  # nobody asks for images between two others
    return settings


def file_layout(table: Table) -> FileLayout:
    """The same, for files that are written without Spark's writer."""
    return FileLayout(to_arrow_schema(table.columns), table.codec, tuple(table.statistics_columns))


@contextmanager
def session_settings(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """The session with these settings; as it was afterwards, whatever happens.

    A batch of a stream belongs to a session of its own (`batch.sparkSession`), with settings of its own.
    """
    before = {name: spark.conf.get(name, None) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, value)
