"""Distributions and duplicates are those of the files that are there."""

import dagster as dg
import pandas as pd
import pytest
from pyspark.sql import functions as F

from image_assets.data.image_samples import (
    PATHS_PER_GROUP,
    Group,
    current_images,
    distribution_metadata,
    duplicates_metadata,
    groups_of_several,
)
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from tests.conftest import Ingested
from tests.support.tables import upsert

pytestmark = pytest.mark.spark

IMAGES = ["path", "image_id", "label", "duplicate_group"]


def test_groups_are_those_in_which_each_named_column_differs() -> None:
    rows: list[tuple] = [(f"file:/{number}", "same", "ball", "one") for number in range(PATHS_PER_GROUP + 2)]
    rows += [("file:/b", "b", "cube", "two"), ("file:/a", "a", "ball", "two"), ("file:/c", "c", None, None)]
    images = pd.DataFrame(rows, columns=IMAGES)
    (exact,) = groups_of_several(images, "image_id", "path")
    assert (exact.name, exact.files, len(exact.paths)) == ("same", PATHS_PER_GROUP + 2, PATHS_PER_GROUP)
    assert groups_of_several(images, "duplicate_group", "image_id") == [Group("two", 2, ["file:/a", "file:/b"])]
    assert groups_of_several(images, "image_id", "label") == []


def test_only_current_files_count_also_without_content(ingested_tables: DeltaTables) -> None:
    gone = ingested_tables.dataframe(IMAGE_FILES).orderBy("path").limit(3).withColumn("state", F.lit("missing"))
    upsert(gone, ingested_tables, IMAGE_FILES)
    path_only = ingested_tables.dataframe(FEATURED_IMAGES).withColumn("content", F.lit(None).cast("binary"))
    ingested_tables.overwrite(path_only.withColumn("perceptual_hash", F.lit(None).cast("string")), FEATURED_IMAGES)
    images = current_images(ingested_tables)
    assert len(images) == 13
    found = distribution_metadata(images) | duplicates_metadata(images)
    assert str(found["distributions"].value).startswith("13 images, 2 labels")
    assert (found["exact_duplicate_groups"].value, found["near_duplicate_groups"].value) == (0, 0)


def test_duplicates_are_counted_listed_and_shown(ingested_tables: DeltaTables) -> None:
    images = current_images(ingested_tables)
    twice = pd.concat([images, images[:1].assign(path="file:/gone.png")])
    found = duplicates_metadata(twice)
    assert found["exact_duplicate_groups"].value == 1
    table = found["exact_duplicates"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["files"] for record in table.records] == [2]
    assert "](data:image/jpeg;base64," in str(found["duplicates"].value)


def test_nothing_is_there_to_explore(delta_tables: DeltaTables) -> None:
    images = current_images(delta_tables)
    assert distribution_metadata(images) == {}
    assert "duplicates" not in duplicates_metadata(images)


def test_the_sample_says_what_the_images_are_like(ingested: Ingested) -> None:
    events = ingested.run.get_asset_materialization_events()
    (metadata,) = (e.materialization.metadata for e in events if e.asset_key == dg.AssetKey("image_samples"))
    assert str(metadata["distributions"].value).startswith("16 images, 2 labels")
    assert metadata["exact_duplicate_groups"].value == 0
