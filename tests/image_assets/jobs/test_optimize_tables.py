"""The job compacts tables with many small files, and reports the result of each table."""

import os

import dagster as dg
import pytest
from pyspark.sql import functions as F

from image_assets.jobs.optimize_tables import optimize_tables
from image_assets.schemas import GRAYSCALE_IMAGES, MODEL_EVALUATIONS, TABLES
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import SMALL_FILES

pytestmark = pytest.mark.spark


def run(delta_tables: DeltaTables, **config: object) -> dict[str, dict[str, object]]:
    """The rows of the last op's report, by table."""
    result = optimize_tables.execute_in_process(
        run_config=config, resources={"delta_tables": delta_tables}, instance=dg.DagsterInstance.ephemeral()
    )
    events = [event for event in result.all_events if event.is_successful_output]
    last = next(event for event in events if event.step_key == "report_optimized")
    table = last.step_output_data.metadata["optimized"]
    assert isinstance(table, dg.TableMetadataValue)
    return {str(record.data["table"]): dict(record.data) for record in table.records}


def add_small_files(delta_tables: DeltaTables) -> None:
    """Adds as many small files of random bytes to grayscale_images as a compaction needs."""
    rows = [(f"file:/{number}", os.urandom(3000)) for number in range(2 * SMALL_FILES)]
    images = delta_tables.spark.createDataFrame(rows, "path string, content binary").repartition(SMALL_FILES)
    missing = {field.name: F.lit(None).cast(field.dataType) for field in GRAYSCALE_IMAGES.columns}
    for name in ("path", "content"):
        missing.pop(name)
    delta_tables.append(images.withColumns(missing), GRAYSCALE_IMAGES)


def test_the_report_matches_what_was_done_to_the_tables(ingested_tables: DeltaTables) -> None:
    add_small_files(ingested_tables)
    uri = ingested_tables.uri(GRAYSCALE_IMAGES)
    before = table_files(uri)

    dry = run(ingested_tables, dry_run=True, tables=["grayscale_images"])
    assert set(dry) == {"grayscale_images"}
    assert dry["grayscale_images"]["done"] == "would be compacted"
    assert table_files(uri) == before

    report = run(ingested_tables)
    assert list(report) == [table.name for table in TABLES]
    after = table_files(uri)
    compacted = report["grayscale_images"]
    assert compacted["done"] == "compacted"
    assert (compacted["files_before"], compacted["files_after"]) == (len(before.files), len(after.files))
    assert (compacted["bytes_before"], compacted["bytes_after"]) == (before.size_bytes, after.size_bytes)
    assert len(after.files) < SMALL_FILES < len(before.files)
    assert report["image_splits"]["done"] == "nothing to compact"
    assert report["model_evaluations"]["done"] == "empty", "the job does not create the table"
    assert not table_files(ingested_tables.uri(MODEL_EVALUATIONS)).files


@pytest.mark.parametrize(
    ("config", "message"),
    [({"tables": ["raw_image"]}, "Unknown tables: raw_image"), ({"minimum_file_mb": 100}, "at least twice")],
)
def test_an_invalid_config_is_an_error_that_says_why(
    delta_tables: DeltaTables, config: dict[str, object], message: str
) -> None:
    with pytest.raises((dg.DagsterConfigMappingFunctionError, ValueError)) as raised:
        run(delta_tables, **config)
    assert message in f"{raised.value} {raised.value.__cause__}"
