"""The audit finds nothing on a good set, and each fault where it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from image_assets.data.audit import audit
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder
from tests.conftest import Ingested
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


def test_a_good_set_breaks_nothing(ingested: Ingested, ingested_tables: DeltaTables) -> None:
    assert broken(ingested_tables, ingested.home / "landing") == {}


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
