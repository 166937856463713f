"""Footers say that every way of writing a table writes it as its columns ask for."""

from functools import partial

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType

from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow
from resources.delta.parquet_files import ColumnChunk, column_chunks, row_groups
from resources.delta.spark_session import ExecutorName
from resources.delta.table import ROW_CHECK_MIN, SMALL_FILES, TABLE_ROW_GROUP_BYTES, Table
from resources.delta.writing import write_by_tasks
from tests.support.tables import with_executor

pytestmark = pytest.mark.spark

THIN = StructType([StructField("name", StringType()), StructField("number", LongType())])
FLOWERS = Table("flowers", keys=("number",), columns=StructType([*THIN, StructField("content", BinaryType())]))
SEEDS = Table("seeds", keys=("number",), columns=THIN)
EXPECTED = {
    FLOWERS: {
        ColumnChunk("name", "UNCOMPRESSED", dictionary=True, statistics=True),
        ColumnChunk("content", "UNCOMPRESSED", dictionary=False, statistics=False),
    },
    SEEDS: {ColumnChunk("name", "ZSTD", dictionary=True, statistics=True)},
}
BOTH = pytest.mark.parametrize("table", [FLOWERS, SEEDS], ids=lambda table: table.name)


def rows(spark: SparkSession, table: Table, first: int = 0, count: int = 100, files: int = 1) -> DataFrame:
    """Few names, and content that is long enough for statistics and repeats, as a dictionary would like it."""
    return spark.range(first, first + count, 1, files).selectExpr(
        *["concat('rose ', id % 3) name", "id number", "cast(repeat('x', 50) AS binary) content"][: len(table.columns)]
    )


def chunks(delta_tables: DeltaTables, table: Table) -> set[ColumnChunk]:
    files = table_files(delta_tables.uri(table)).files
    return {chunk for chunk in column_chunks(file.url for file in files) if chunk.column != "number"}


def settings(spark: SparkSession) -> dict[str, str]:
    """What the session is set to, but for the note that Delta itself keeps there."""
    return {name: value for name, value in spark.conf.getAll.items() if "lastCommitVersion" not in name}


@BOTH
@pytest.mark.parametrize("executor", ["local", "spark"])
def test_appends_updates_compaction_and_overwrites_write_alike(
    delta_tables: DeltaTables, table: Table, executor: ExecutorName
) -> None:
    delta_tables = with_executor(delta_tables, executor)
    delta_tables.append(rows(delta_tables.spark, table), table)
    assert chunks(delta_tables, table) == EXPECTED[table]
    delta_tables.update([{"number": number, "name": "tulip"} for number in range(50, 150)], table, ["name"])
    there = delta_tables.read(table, ["name", "number"]).to_pylist()
    assert sorted(row["number"] for row in there) == [*range(100)], "nothing is inserted"
    assert {row["number"] for row in there if row["name"] == "tulip"} == {*range(50, 100)}
    assert chunks(delta_tables, table) == EXPECTED[table]
    more = rows(delta_tables.spark, table, first=200, count=40 * SMALL_FILES, files=SMALL_FILES)
    delta_tables.append(more, table)
    delta_tables.compact(table)
    assert len(table_files(delta_tables.uri(table)).files) < SMALL_FILES
    assert chunks(delta_tables, table) == EXPECTED[table]
    delta_tables.overwrite(rows(delta_tables.spark, table), table)
    assert chunks(delta_tables, table) == EXPECTED[table]


@BOTH
def test_followed_rows_are_written_alike(delta_tables: DeltaTables, table: Table) -> None:
    upstream = Table("upstream", keys=("number",), columns=table.columns)
    delta_tables.append(rows(delta_tables.spark, table), upstream)
    names = table.columns.fieldNames()
    by_tasks = partial(write_by_tasks, delta_tables, columns=names, into=table, by=iter)
    follow(delta_tables, upstream, table, by=lambda new: by_tasks(new).files)
    assert chunks(delta_tables, table) == EXPECTED[table]


def test_row_groups_of_large_images_are_bounded(delta_tables: DeltaTables) -> None:
    large = rows(delta_tables.spark, FLOWERS, count=30).selectExpr(
        "name", "number", "cast(repeat(cast(number AS string), 2000000) AS binary) content"
    )
    delta_tables.append(large, FLOWERS)
    groups = row_groups(file.url for file in table_files(delta_tables.uri(FLOWERS)).files)
    assert sum(count for count, _ in groups) == 30
    assert len(groups) > 1
    assert all(size <= 2 * TABLE_ROW_GROUP_BYTES or count <= ROW_CHECK_MIN for count, size in groups)


def test_the_session_is_as_it_was_after_writing_and_after_an_exception(delta_tables: DeltaTables) -> None:
    before = settings(delta_tables.spark)
    seeds = rows(delta_tables.spark, SEEDS, files=SMALL_FILES)
    delta_tables.append(seeds, SEEDS)
    delta_tables.compact(SEEDS)
    assert delta_tables.version(SEEDS) == 2, "it was compacted"
    with pytest.raises(Py4JJavaError, match="a broken row"):
        delta_tables.append(seeds.withColumn("name", F.raise_error("a broken row").cast("string")), SEEDS)
    assert settings(delta_tables.spark) == before
    assert delta_tables.spark.conf.get("spark.sql.parquet.compression.codec") == "uncompressed"
