"""The check of a table's layout passes as tables are written, and names each fault with its remedy."""

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import DataFrame

from image_assets.data.table_checks import SAMPLED_FILES, layout
from image_assets.schemas import GRAYSCALE_IMAGES, IMAGE_FILES, MODEL_EVALUATIONS, RAW_IMAGES, TABLES
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import SMALL_FILES, TABLE_ROW_GROUP_BYTES, Table

pytestmark = pytest.mark.spark
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def answer(delta_tables: DeltaTables, table: Table) -> dg.AssetCheckResult:
    result = layout(table)(delta_tables=delta_tables)
    assert isinstance(result, dg.AssetCheckResult)
    return result


def append_by_another(rows: DataFrame, delta_tables: DeltaTables, table: Table, codec: str) -> None:
    """As a program writes that does not know the table's layout."""
    rows.write.format("delta").mode("append").option("compression", codec).save(delta_tables.uri(table))


def test_every_table_passes_as_it_is_written_also_where_there_is_none(ingested_tables: DeltaTables) -> None:
    for table in TABLES:
        assert answer(ingested_tables, table).passed, table.name
    assert answer(ingested_tables, MODEL_EVALUATIONS).metadata["footers_read"].value == "none"
    assert not DeltaTable.is_deltatable(ingested_tables.uri(MODEL_EVALUATIONS)), "a check makes no table"


@pytest.mark.parametrize(("table", "severity"), [(RAW_IMAGES, ERROR), (IMAGE_FILES, WARN)], ids=lambda it: str(it)[:20])
def test_another_codec_is_found(ingested_tables: DeltaTables, table: Table, severity: dg.AssetCheckSeverity) -> None:
    append_by_another(ingested_tables.dataframe(table).limit(1), ingested_tables, table, "snappy")
    result = answer(ingested_tables, table)
    assert (result.passed, result.severity) == (False, severity)
    assert "path in SNAPPY" in str(result.description)
    assert f"expected {table.codec.upper()}: write only with DeltaTables" in str(result.description)


def test_statistics_of_image_bytes_are_found(ingested_tables: DeltaTables) -> None:
    append_by_another(ingested_tables.dataframe(RAW_IMAGES).limit(1), ingested_tables, RAW_IMAGES, "uncompressed")
    result = answer(ingested_tables, RAW_IMAGES)
    assert (result.passed, result.severity) == (False, WARN)
    assert "found dictionaries or statistics of content, expected none" in str(result.description)


def test_row_groups_that_are_too_large_are_found(ingested_tables: DeltaTables) -> None:
    large = ingested_tables.spark.range(0, 12, 1, 1).selectExpr(
        "string(id) path", f"cast(repeat(string(id % 10), {TABLE_ROW_GROUP_BYTES // 4}) AS binary) content"
    )
    append_by_another(large, ingested_tables, GRAYSCALE_IMAGES, "uncompressed")
    result = answer(ingested_tables, GRAYSCALE_IMAGES)
    assert "row groups" not in str(result.description), "a single one may hold a large image"
    for _ in range(2):
        append_by_another(large, ingested_tables, GRAYSCALE_IMAGES, "uncompressed")
    assert "found 3 row groups of up to" in str(answer(ingested_tables, GRAYSCALE_IMAGES).description)


def test_many_small_files_are_found_with_the_remedy(ingested_tables: DeltaTables) -> None:
    rows = ingested_tables.dataframe(GRAYSCALE_IMAGES).withColumnRenamed("path", "name")
    many = rows.crossJoin(ingested_tables.spark.range(0, SMALL_FILES).selectExpr("string(id) path"))
    ingested_tables.append(many.repartition(SMALL_FILES, "path"), GRAYSCALE_IMAGES)
    ingested_tables.append(many.repartition(2 * SMALL_FILES, "path"), GRAYSCALE_IMAGES)
    result = answer(ingested_tables, GRAYSCALE_IMAGES)
    assert (result.passed, result.severity) == (False, WARN)
    assert "launch the job optimize_tables" in str(result.description)
    assert result.metadata["footers_read"].value == f"the newest {SAMPLED_FILES}"
    ingested_tables.compact(GRAYSCALE_IMAGES)
    assert answer(ingested_tables, GRAYSCALE_IMAGES).passed, "the remedy helps"


def test_other_statistics_in_the_log_are_found(delta_tables: DeltaTables) -> None:
    rows = delta_tables.spark.createDataFrame([("file:/a", b"image")], "path string, content binary").toArrow()
    write_deltalake(delta_tables.uri(GRAYSCALE_IMAGES), rows)
    result = answer(delta_tables, GRAYSCALE_IMAGES)
    assert "found statistics of any column in the log, expected path,image_id," in str(result.description)
