"""The sample shows Spark's own pixels and thumbnails, whatever the files are called."""

from io import BytesIO
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from image_assets.data.image_samples import PER_LABEL, image_samples
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import IMAGE_FILES, IMAGE_SAMPLES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import to_name
from resources.files.image_folder import ImageFolder
from tests.support.images import picture, png, put

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
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    image_samples(delta_tables=delta_tables, image_folder=image_folder)
    assert delta_tables.dataframe(IMAGE_SAMPLES).count() == 0


def test_a_few_of_each_label_are_chosen(ingested_tables: DeltaTables) -> None:
    counts = ingested_tables.dataframe(IMAGE_SAMPLES).groupBy("label").count().collect()
    assert {row.label: row["count"] for row in counts} == {"ball": PER_LABEL, "cube": PER_LABEL}
    assert ingested_tables.dataframe(IMAGE_FILES).count() == 16
