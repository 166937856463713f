"""The audit finds nothing on a good set, and each fault where it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from pyspark.sql import functions as F

from image_assets.data.audit import audit
from image_assets.data.featured_images import featured_images
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_splits import image_splits
from image_assets.data.raw_images import raw_images
from image_assets.jobs.repair_tables import repair
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES, TABLES
from resources.delta.delta_log import remember
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from tests.conftest import Ingested, tables_in
from tests.support.images import png, put

pytestmark = pytest.mark.spark


def broken(delta_tables: DeltaTables, landing: Path) -> dict[str, int]:
    """The rules that are broken, and by how many."""
    findings = audit(delta_tables, ImageFolder(root=str(landing), settle_seconds=0))
    return {finding.rule: finding.broken for finding in findings if finding.broken}


def delete(table: Table, condition: str) -> Callable[[DeltaTables], None]:
    from delta.tables import DeltaTable

    return lambda tables: DeltaTable.forPath(tables.spark, tables.uri(table)).delete(condition)


def repeat(table: Table) -> Callable[[DeltaTables], None]:
    return lambda tables: tables.append(tables.dataframe(table).limit(1), table)


def alter(tables: DeltaTables) -> None:
    """A row whose content is not what its image_id says."""
    row = tables.dataframe(RAW_IMAGES).limit(1)
    tables.append(row.withColumn("image_id", F.lit("0" * 64)), RAW_IMAGES)


@pytest.mark.slow
def test_each_fault_breaks_its_rules(ingested: Ingested, ingested_tables: DeltaTables, tmp_path: Path) -> None:
    repeat(FEATURED_IMAGES)(ingested_tables)
    alter(ingested_tables)
    delete(GRAYSCALE_IMAGES, "path LIKE '%ball 2.png'")(ingested_tables)
    delete(RAW_IMAGES, "path LIKE '%ball 4.png'")(ingested_tables)
    delete(IMAGE_FILES, "path LIKE '%ball 6.png'")(ingested_tables)
    landing = ingested.home / "landing"
    replaced = landing / "ball" / "ball 0.png"
    original = replaced.rename(tmp_path / replaced.name)
    new = [put(landing, "new.png", png(99)), put(landing, "ball/ball 0.png", png(98))]
    try:
        found = broken(ingested_tables, landing)
    finally:
        for file in new:
            file.unlink()
        original.rename(replaced)  # with its time: other tests use the folder as well
    assert found == {
        "image_files: every file is recorded as it is": 3,  # new, replaced and forgotten
        "featured_images: one row per path, image_id": 1,
        "raw_images: image_id and length match the content": 1,
        "image_files: every current file has the recorded content": 1,
        "raw_images: every current file has a row": 1,
        "grayscale_images: every current file has a row": 1,
        "raw_images: every row has a file in image_files": 1,
        "featured_images: every row has one in raw_images": 1,
    }


def test_what_is_lost_or_broken_is_reported_and_a_repaired_set_breaks_nothing(
    ingested: Ingested, ingested_tables: DeltaTables
) -> None:
    landing = ingested.home / "landing"
    logs = {table: Path(ingested_tables.uri(table), "_delta_log") for table in (FEATURED_IMAGES, IMAGE_FILES)}
    shutil.rmtree(ingested_tables.uri(RAW_IMAGES))
    commit = max(logs[FEATURED_IMAGES].glob("*.json"))
    commit.write_bytes(commit.read_bytes()[:-20])
    max(logs[IMAGE_FILES].glob("*.json")).write_text("")
    next(Path(ingested_tables.uri(GRAYSCALE_IMAGES)).glob("*.parquet")).unlink()
    remember.cache_clear()
    found = broken(ingested_tables, landing)
    assert {table.name for table in TABLES if f"{table.name}: its log and its files are whole" in found} == {
        "raw_images",
        "featured_images",
        "image_files",
        "grayscale_images",
    }
    assert found["raw_images: every current file has a row"]

    folder = ImageFolder(root=str(landing), settle_seconds=0)
    assert {one.table for one in repair(ingested_tables, folder)} >= {"raw_images", "featured_images", "image_files"}
    dg.materialize(
        [raw_images, featured_images, grayscale_images, image_splits],
        resources={
            "delta_tables": ingested_tables,
            "image_folder": folder,
            "duplicate_rules": DuplicateRules(),
        },
        instance=dg.DagsterInstance.ephemeral(),
    )
    made = sorted(Path(ingested_tables.root).iterdir())
    assert broken(ingested_tables, landing) == {}
    assert sorted(Path(ingested_tables.root).iterdir()) == made, "no table is created"
    by_spark = DeltaSpark(spark_config=ingested_tables.pyspark.spark_config, executor="spark")
    results = list(audit(tables_in(Path(ingested_tables.root).parent, by_spark), folder))
    assert [result.rule for result in results if result.broken] == []
    assert sum("Spark and delta-rs read the same number" in result.rule for result in results) == len(TABLES)
    for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS, IMAGE_FILES):
        assert ingested_tables.snapshot(table).rows == 16, table.name
