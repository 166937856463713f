"""The job compacts where it pays, and reports what is there."""

import os

import dagster as dg
import pytest
from pyspark.sql import functions as F

from image_assets.jobs.optimize_tables import optimize_tables
from image_assets.schemas import GRAYSCALE_IMAGES, IMAGE_FILES, MODEL_EVALUATIONS, TABLES
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.table_layout import SMALL_FILES

pytestmark = pytest.mark.spark


def run(delta_tables: DeltaTables, **config: object) -> dict[str, dict[str, object]]:
    """The last op's report by table."""
    result = optimize_tables.execute_in_process(
        run_config=config, resources={"delta_tables": delta_tables}, instance=dg.DagsterInstance.ephemeral()
    )
    events = [event for event in result.all_events if event.is_successful_output]
    last = next(event for event in events if event.step_key == "report_optimized")
    table = last.step_output_data.metadata["optimized"]
    assert isinstance(table, dg.TableMetadataValue)
    return {str(record.data["table"]): dict(record.data) for record in table.records}


def add_small_files(delta_tables: DeltaTables) -> None:
    """As many rows and files in grayscale_images as a compaction needs: bytes of chance, which nothing compresses."""
    rows = [(f"file:/{number}", os.urandom(3000)) for number in range(2 * SMALL_FILES)]
    images = delta_tables.spark.createDataFrame(rows, "path string, content binary").repartition(SMALL_FILES)
    missing = {field.name: F.lit(None).cast(field.dataType) for field in GRAYSCALE_IMAGES.columns}
    for name in ("path", "content"):
        missing.pop(name)
    delta_tables.append(images.withColumns(missing), GRAYSCALE_IMAGES)


def test_what_is_reported_is_what_was_done_to_the_tables(ingested_tables: DeltaTables) -> None:
    add_small_files(ingested_tables)
    uri = ingested_tables.uri(GRAYSCALE_IMAGES)
    before = table_files(uri)

    dry = run(ingested_tables, dry_run=True, tables=["grayscale_images"])
    assert set(dry) == {"grayscale_images"}
    assert dry["grayscale_images"]["done"] == "would pay"
    assert table_files(uri) == before

    report = run(ingested_tables)
    assert list(report) == [table.name for table in TABLES]
    after = table_files(uri)
    compacted = report["grayscale_images"]
    assert compacted["done"] == "compacted"
    assert (compacted["files_before"], compacted["files_after"]) == (len(before.files), len(after.files))
    assert (compacted["bytes_before"], compacted["bytes_after"]) == (before.size_bytes, after.size_bytes)
    assert len(after.files) < SMALL_FILES < len(before.files)
    assert "content" not in str(compacted["zstd_would_save"])
    assert report["image_splits"]["done"] == "does not pay"
    assert report["model_evaluations"]["done"] == "nothing there", "it does not exist, and is not made"
    assert not table_files(ingested_tables.uri(MODEL_EVALUATIONS)).files


def test_what_zstd_would_save_is_told(ingested_tables: DeltaTables) -> None:
    rows = ingested_tables.spark.range(20_000).selectExpr(
        "concat('file:/landing/', id) path", "sha2(string(id), 256) reason"
    )
    plain = rows.write.format("delta").option("compression", "uncompressed").option("mergeSchema", True)
    plain.mode("append").save(ingested_tables.uri(IMAGE_FILES))
    told = run(ingested_tables, tables=["image_files"])["image_files"]
    assert "% of path (mixed), " in str(told["zstd_would_save"])


@pytest.mark.parametrize(
    ("config", "message"),
    [({"tables": ["raw_image"]}, "no table raw_image"), ({"minimum_file_mb": 100}, "at least twice")],
)
def test_a_wrong_config_is_refused(delta_tables: DeltaTables, config: dict[str, object], message: str) -> None:
    with pytest.raises((dg.DagsterConfigMappingFunctionError, ValueError)) as raised:
        run(delta_tables, **config)
    assert message in f"{raised.value} {raised.value.__cause__}"
