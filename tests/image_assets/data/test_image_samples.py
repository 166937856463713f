"""The sample shows Spark's own pixels and thumbnails, whatever the files are called."""

from io import BytesIO
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyspark.sql import functions as F

from image_assets.data.image_samples import (
    PATHS_PER_GROUP,
    PER_LABEL,
    Group,
    current_images,
    distribution_metadata,
    duplicates_metadata,
    groups_of_several,
    image_samples,
)
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SAMPLES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import to_name
from resources.files.image_folder import ImageFolder
from tests.conftest import Ingested
from tests.support.images import picture, png, put
from tests.support.tables import upsert

pytestmark = pytest.mark.spark

READABLE = ["plain.png", "with a space.png", "a#b+c.png", "Blüte 😀.png"]
THUMBNAIL_ONLY = ["100%.png", "a[1]*?.png", "{a}.png", "12:30.png"]


def test_pixels_and_thumbnails_are_those_of_the_files_also_under_odd_names(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    names = READABLE + THUMBNAIL_ONLY
    for number, name in enumerate(names):
        put(landing, name, png(number))
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    image_samples(delta_tables=delta_tables, image_folder=image_folder)
    rows = {Path(to_name(row.path).decode()).name: row for row in delta_tables.dataframe(IMAGE_SAMPLES).collect()}
    assert set(rows) == set(names)
    for number, name in enumerate(READABLE):
        row, original = rows[name], np.asarray(picture(number))
        blue_green_red = np.frombuffer(row.data, np.uint8).reshape(row.height, row.width, row.channels)
        assert np.array_equal(blue_green_red[:, :, ::-1], original)
    assert all(rows[name].data is None for name in THUMBNAIL_ONLY)
    for row in rows.values():
        with Image.open(BytesIO(row.thumbnail)) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (48, 32))

    before = delta_tables.snapshot(IMAGE_SAMPLES)
    image_samples(delta_tables=delta_tables, image_folder=image_folder)
    assert delta_tables.snapshot(IMAGE_SAMPLES) == before, "the same files are the same sample"
    for name in names:
        (landing / name).unlink()
    ingest(delta_tables, image_folder, IngestConfig(accept_missing=True), dg.get_dagster_logger())
    image_samples(delta_tables=delta_tables, image_folder=image_folder)
    assert delta_tables.dataframe(IMAGE_SAMPLES).count() == 0


def test_a_few_of_each_label_are_chosen(ingested_tables: DeltaTables) -> None:
    counts = ingested_tables.dataframe(IMAGE_SAMPLES).groupBy("label").count().collect()
    assert {row.label: row["count"] for row in counts} == {"ball": PER_LABEL, "cube": PER_LABEL}
    assert ingested_tables.dataframe(IMAGE_FILES).count() == 16


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
