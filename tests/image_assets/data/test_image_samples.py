"""The sample shows Spark's own pixels, or those of a downscaled copy, and thumbnails, whatever the files are called."""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyspark.sql import functions as F

from image_assets.data.folder_layout import FolderLayout
from image_assets.data.image_samples import (
    PATHS_PER_GROUP,
    Group,
    current_images,
    distribution_metadata,
    duplicates_metadata,
    groups_of_several,
    image_samples,
    sample_files,
    samples_metadata,
    spark_name,
    spark_pixels,
)
from image_assets.data.labels import Labels
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SAMPLES
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.file_system import to_name, to_path
from resources.files.image_folder import ImageFolder
from resources.samples import SampleSize
from tests.conftest import Ingested, tables_in
from tests.gallery.small_home import append
from tests.support.images import opened, picture, png, put
from tests.support.tables import tables_at, upsert

READABLE = ["plain.png", "with a space.png", "a#b+c.png", "Blüte 😀.png"]
THUMBNAIL_ONLY = ["100%.png", "a[1]*?.png", "{a}.png", "12:30.png"]


def sample(delta_tables: DeltaTables, image_folder: ImageFolder) -> None:
    image_samples(delta_tables=delta_tables, image_folder=image_folder, sample_size=SampleSize())


def colors(row: Mapping[str, Any]) -> np.ndarray:
    """The stored pixels as red, green, blue."""
    return np.frombuffer(row["data"], np.uint8).reshape(row["height"], row["width"], row["channels"])[:, :, ::-1]


def photograph_jpeg(size: tuple[int, int], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = BytesIO()
    picture(1, size).save(content, "JPEG", quality=95, exif=exif)
    return content.getvalue()


def rows_of(delta_tables: DeltaTables) -> dict[str, dict[str, Any]]:
    rows = delta_tables.read(IMAGE_SAMPLES, IMAGE_SAMPLES.columns.fieldNames()).to_pylist()
    return {Path(to_name(row["path"]).decode()).name: row for row in rows}


@pytest.mark.spark
def test_pixels_and_thumbnails_are_those_of_the_files_also_under_odd_names(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    names = READABLE + THUMBNAIL_ONLY
    for number, name in enumerate(names):
        put(landing, name, png(number))
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    sample(delta_tables, image_folder)
    rows = rows_of(delta_tables)
    assert set(rows) == set(names)
    for number, name in enumerate(READABLE):
        assert np.array_equal(colors(rows[name]), np.asarray(picture(number)))
    assert all(rows[name]["data"] is None for name in THUMBNAIL_ONLY)
    for row in rows.values():
        with opened(row["thumbnail"]) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (48, 32))
    assert delta_tables.dataframe(IMAGE_SAMPLES).count() == len(names)

    paths = [to_path(bytes(landing / name)) for name in ("deleted since its thumbnail was made.png", *READABLE)]
    assert set(spark_pixels(delta_tables.spark, paths)) == {*paths[1:]}
    assert spark_pixels(delta_tables.spark, paths[:1]) == {}

    before = delta_tables.snapshot(IMAGE_SAMPLES)
    sample(delta_tables, image_folder)
    assert delta_tables.snapshot(IMAGE_SAMPLES) == before, "the same files are the same sample"

    (landing / names[0]).unlink()
    without_spark = tables_in(landing.parent, DeltaSpark(spark_config={}, executor="local"))
    ingest(without_spark, image_folder, IngestConfig(), dg.get_dagster_logger())
    sample(without_spark, image_folder)
    del rows[names[0]]
    assert rows_of(without_spark) == rows, "other rows stay as they are"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("file:/photos/a b.png", "file:///photos/a b.png"),
        ("file://photos/a.png", "file:////photos/a.png"),
        ("s3://photos/roses/a.png", "s3://photos/roses/a.png"),
        ("s3://photos//roses/a.png", None),
        ("s3://photos/roses//a.png", None),
    ],
)
def test_spark_reads_only_names_that_it_does_not_change(path: str, name: str | None) -> None:
    assert spark_name(path) == name


def test_nothing_is_left_of_deleted_files(home: Path, landing: Path, image_folder: ImageFolder) -> None:
    delta_tables = tables_in(home, DeltaSpark(spark_config={}, executor="local"))
    photograph = put(landing, "ball/large.jpg", photograph_jpeg((1600, 1200)))
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    sample(delta_tables, image_folder)
    assert set(rows_of(delta_tables)) == {"large.jpg"}
    photograph.unlink()
    ingest(delta_tables, image_folder, IngestConfig(accept_missing=True), dg.get_dagster_logger())
    sample(delta_tables, image_folder)
    assert rows_of(delta_tables) == {}


@pytest.mark.parametrize("above_content_limit", [False, True])
def test_large_photographs_are_downscaled_without_spark(home: Path, landing: Path, above_content_limit: bool) -> None:
    delta_tables = tables_in(home, DeltaSpark(spark_config={}, executor="local"))
    limit = 1000 if above_content_limit else 512 * 1024**2
    image_folder = ImageFolder(root=str(landing), settle_seconds=0, content_limit_bytes=limit)
    put(landing, "phone.jpg", photograph_jpeg((4032, 3024)))
    put(landing, "turned.jpg", photograph_jpeg((4032, 3024), orientation=6))
    put(landing, "100%.png", png(2, (1200, 1200)))
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    sample(delta_tables, image_folder)
    rows = rows_of(delta_tables)
    assert {name: colors(row).shape for name, row in rows.items()} == {
        "phone.jpg": (768, 1024, 3),
        "turned.jpg": (1024, 768, 3),
        "100%.png": (1024, 1024, 3),
    }
    expected = np.asarray(picture(1, (1024, 768)), float)
    assert np.abs(colors(rows["phone.jpg"]) - expected).mean() < 4
    assert np.abs(colors(rows["turned.jpg"]) - np.rot90(expected, -1)).mean() < 4
    assert opened(rows["phone.jpg"]["thumbnail"]).size == (96, 72)
    assert opened(rows["turned.jpg"]["thumbnail"]).size == (72, 96)


def test_a_file_that_is_gone_has_a_row_until_the_next_run(home: Path, landing: Path, image_folder: ImageFolder) -> None:
    delta_tables = tables_in(home, DeltaSpark(spark_config={}, executor="local"))
    put(landing, "a.png", png(1))
    put(landing, "b.jpg", photograph_jpeg((1600, 1200)))
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    (landing / "a.png").unlink()
    sample(delta_tables, image_folder)
    rows = rows_of(delta_tables)
    assert (rows["a.png"]["thumbnail"], rows["a.png"]["data"]) == (None, None)
    assert rows["b.jpg"]["thumbnail"]


LAYOUT = FolderLayout("file:/landing")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (SampleSize(), {"ball": 8, "cube": 3}),
        (SampleSize(per_label=2), {"ball": 2, "cube": 2}),
        (SampleSize(per_folder=2), {"ball/a": 2, "ball/b": 2, "cube/a": 2}),
        (SampleSize(per_label=3, per_folder=2), {"ball": 3, "cube/a": 2}),
    ],
)
def test_images_per_label_and_folder_are_settings(size: SampleSize, expected: dict[str, int]) -> None:
    counts = {"ball/a": 6, "ball/b": 6, "cube/a": 3}
    paths = [f"file:/landing/{folder}/{number}.png" for folder, count in counts.items() for number in range(count)]
    files = [{"path": path, "image_id": sha256(path.encode()).hexdigest(), "length": 1} for path in paths]
    given = {path: path.split("/")[2] for path in paths}
    chosen = sample_files(files, Labels({}, given, LAYOUT), size)
    for prefix, count in expected.items():
        found = [file for file in chosen if file["path"].startswith(f"file:/landing/{prefix}/")]
        assert len(found) == count
        assert {file["label"] for file in found} == {prefix.split("/")[0]}
    assert chosen == sample_files(reversed(files), Labels({}, given, LAYOUT), size), "the order does not matter"


@pytest.mark.spark
def test_a_few_of_each_label_are_chosen(ingested_tables: DeltaTables) -> None:
    counts = ingested_tables.dataframe(IMAGE_SAMPLES).groupBy("label").count().collect()
    assert {row.label: row["count"] for row in counts} == {"ball": 8, "cube": 8}
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


@pytest.mark.spark
def test_only_current_files_count_also_without_content(ingested_tables: DeltaTables) -> None:
    gone = ingested_tables.dataframe(IMAGE_FILES).orderBy("path").limit(3).withColumn("state", F.lit("missing"))
    upsert(gone, ingested_tables, IMAGE_FILES)
    path_only = ingested_tables.dataframe(FEATURED_IMAGES).withColumn("content", F.lit(None).cast("binary"))
    ingested_tables.overwrite(path_only.withColumn("perceptual_hash", F.lit(None).cast("string")), FEATURED_IMAGES)
    images = current_images(ingested_tables)
    assert len(images) == 13
    found = distribution_metadata(images) | duplicates_metadata(images, [])
    assert str(found["distributions"].value).startswith("13 images, 2 labels")
    assert (found["exact_duplicate_groups"].value, found["near_duplicate_groups"].value) == (0, 0)


@pytest.mark.spark
def test_duplicates_are_counted_listed_and_shown(ingested_tables: DeltaTables) -> None:
    images = current_images(ingested_tables)
    twice = pd.concat([images, images[:1].assign(path="file:/gone.png")])
    found = duplicates_metadata(twice, [])
    assert found["exact_duplicate_groups"].value == 1
    table = found["exact_duplicates"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["files"] for record in table.records] == [2]
    assert "](data:image/jpeg;base64," in str(found["duplicates"].value)


@pytest.mark.spark
def test_nothing_is_there_to_explore(delta_tables: DeltaTables) -> None:
    images = current_images(delta_tables)
    assert distribution_metadata(images) == {}
    assert "duplicates" not in duplicates_metadata(images, [])


def test_the_sheet_of_thousands_of_labels_is_a_part_of_the_sample(tmp_path: Path) -> None:
    tables = tables_at(tmp_path / "tables")
    rows = [{"path": f"file:/{number}.png", "label": f"label {number}", "thumbnail": b""} for number in range(4000)]
    append(tables, IMAGE_SAMPLES, rows)
    sheet = str(samples_metadata(tables, [])["images"].value)
    assert sheet.startswith("a sample of each label: 200 of 4,000 images")
    assert len(sheet) < 200_000


@pytest.mark.spark
def test_the_sample_says_what_the_images_are_like(ingested: Ingested) -> None:
    events = ingested.run.get_asset_materialization_events()
    (metadata,) = (e.materialization.metadata for e in events if e.asset_key == dg.AssetKey("image_samples"))
    assert str(metadata["distributions"].value).startswith("16 images, 2 labels")
    assert metadata["exact_duplicate_groups"].value == 0
