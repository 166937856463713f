"""From files to caches: what is new travels, what is not leaves everything as it was."""

import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from image_assets.data.featured_images import featured_images
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_splits import SplitConfig, image_splits, read_split, split_rows, training_labels
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.data.training_cache import cache_name, existing_cache, find_or_write_cache, materialize_cache
from image_assets.images.cached_pixels import to_cached_pixels
from image_assets.images.pixels import to_pixels
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES, Table
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.delta.row_groups import Color, Content
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Snapshot
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from tests.conftest import tables_in
from tests.support.images import png, put

pytestmark = pytest.mark.spark

PATH = (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)


@pytest.fixture
def caches(home: Path) -> PetastormCaches:
    return PetastormCaches(root=str(home / "caches"))


def run_path(delta_tables: DeltaTables, image_folder: ImageFolder) -> dict[str, Snapshot]:
    """Every table of the data's path, brought up to the folder."""
    ingest(delta_tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    featured_images(delta_tables=delta_tables, image_folder=image_folder)
    grayscale_images(delta_tables=delta_tables, image_folder=image_folder)
    image_splits(
        config=SplitConfig(), delta_tables=delta_tables, image_folder=image_folder, duplicate_rules=DuplicateRules()
    )
    return {table.name: delta_tables.snapshot(table) for table in PATH}


def names(delta_tables: DeltaTables, table: Table) -> Counter[str]:
    return Counter(Path(row.path).name for row in delta_tables.dataframe(table).select("path").collect())


def rows_of(cache: Cache) -> list[dict]:
    return [row for file in cache.files for row in pq.read_table(file.removeprefix("file://")).to_pylist()]


def test_exactly_what_is_new_travels_from_files_to_caches(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    caches: PetastormCaches,
    landing: Path,
    eight_images: dict[str, bytes],
) -> None:
    def cache() -> tuple[Cache, bool]:
        return find_or_write_cache(delta_tables, caches, "training", ranks=2)

    first = run_path(delta_tables, image_folder)
    assert [snapshot.rows for snapshot in first.values()] == [8] * 5
    written, was_written = cache()
    assert was_written
    in_training = {row.image_id: row.label_index for row in split_rows(delta_tables, "training").collect()}
    assert {sha256(row["content"]).hexdigest(): row["label_index"] for row in rows_of(written)} == in_training
    assert set(in_training.values()) == {0, 1}

    assert run_path(delta_tables, image_folder) == first, "a second run adds no row and no Delta version"
    assert cache() == (written, False)

    put(landing, "no label.png", png(100))
    third = run_path(delta_tables, image_folder)
    assert [third[name].rows - first[name].rows for name in first] == [1, 1, 1, 1, 0], "it is in no split"
    assert cache() == (written, False), "and changes no cache"

    for number in (101, 102):  # a label that sorts before the others
        put(landing, f"apple/apple {number}.png", png(number))
    put(landing, "cube/cube 103.png", png(103))
    fourth = run_path(delta_tables, image_folder)
    assert [fourth[name].rows - third[name].rows for name in third] == [3] * 5
    in_files = Counter(file.name for file in landing.rglob("*.png"))
    for table in PATH[:-1]:
        assert names(delta_tables, table) == in_files
    assert names(delta_tables, IMAGE_SPLITS) == in_files - Counter(["no label.png"])
    numbers = delta_tables.dataframe(FEATURED_IMAGES).select("label", "label_index").distinct().collect()
    assert {row.label: row.label_index for row in numbers} == {"ball": 0, "cube": 1, "apple": 2, None: None}
    other, was_written = cache()
    assert was_written
    assert other.name != written.name


def test_caches_are_named_by_rows_split_and_ranks(ingested_tables: DeltaTables, caches: PetastormCaches) -> None:
    names = {
        find_or_write_cache(ingested_tables, caches, split, ranks=ranks)[0].name
        for split, ranks in [("training", 1), ("training", 2), ("validation", 2)]
    }
    assert len(names) == 3
    again, was_written = find_or_write_cache(ingested_tables, caches, "training", ranks=2)
    assert not was_written
    metadata = materialize_cache(ingested_tables, caches, "training", ranks=2).metadata or {}
    assert (metadata["dagster/row_count"], metadata["row_groups"]) == (again.rows, min(again.rows, 8))
    assert (metadata["written"], metadata["evicted"]) == (False, "none")
    assert metadata["bytes"] == sum(Path(file.removeprefix("file://")).stat().st_size for file in again.files)
    assert "images, as processes read them" in str(metadata["images"])


def test_only_scaled_images_need_a_cache_for_each_side(ingested_tables: DeltaTables, caches: PetastormCaches) -> None:
    def name(content: str, side: int | None, unnamed: int | None = 224) -> str:
        update = {"content": content, "side_pixels": side, "unnamed_side_pixels": unnamed}
        return cache_name(ingested_tables, caches.model_copy(update=update), "training", ["ball", "cube"], 2)

    assert len({name("original", side) for side in (None, 224, 384)}) == 1
    assert len({name("jpeg", side) for side in (224, 384)}) == 2
    assert name("jpeg", 224) != name("jpeg", 224, unnamed=None)


def test_a_cache_that_was_cut_is_written_again_and_refused_by_a_training(
    ingested_tables: DeltaTables, caches: PetastormCaches
) -> None:
    cache, _ = find_or_write_cache(ingested_tables, caches, "training", ranks=2)
    labels = training_labels(ingested_tables)
    assert existing_cache(ingested_tables, caches, "training", labels, 2) == cache
    file = Path(cache.files[0].removeprefix("file://"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FileNotFoundError, match=f"no complete cache {cache.name} .*materialize training_cache first"):
        existing_cache(ingested_tables, caches, "training", labels, 2)
    assert find_or_write_cache(ingested_tables, caches, "training", ranks=2) == (cache, True)


@pytest.mark.parametrize(("content", "color"), [("original", "gray"), ("jpeg", "rgb"), ("pixels", "gray")])
def test_a_cache_holds_what_its_settings_say(
    ingested_tables: DeltaTables, home: Path, content: Content, color: Color
) -> None:
    caches = PetastormCaches(root=str(home / "caches"), content=content, color=color, side_pixels=224)
    cache, _ = find_or_write_cache(ingested_tables, caches, "validation", ranks=1)
    assert (cache.content, cache.color) == (content, color)
    originals = {row.image_id: row.content for row in ingested_tables.dataframe(FEATURED_IMAGES).collect()}
    for row in rows_of(cache):
        pixels = to_pixels(originals[row["image_id"]], 224, color)
        difference = np.abs(to_cached_pixels(row["content"], 224, content, color).astype(int) - pixels).max()
        assert difference <= (30 if content == "jpeg" else 0)
        assert content == "original" or len(row["content"]) <= 224 * 224 * (3 if color == "rgb" else 1)
    spark = DeltaSpark(spark_config=ingested_tables.pyspark.spark_config, executor="spark")
    elsewhere = PetastormCaches(root=str(home / "by Spark"), content=content, color=color, side_pixels=224)
    by_spark, _ = find_or_write_cache(tables_in(home, spark), elsewhere, "validation", ranks=1)
    assert (by_spark.name, rows_of(by_spark)) == (cache.name, rows_of(cache)), "both ways give the same rows"
    others = PetastormCaches(root=caches.root, color="gray" if color == "rgb" else "rgb")
    with pytest.raises(FileNotFoundError, match="with content 'original' and color"):
        existing_cache(ingested_tables, others, "validation", training_labels(ingested_tables), 1)


def test_gray_images_that_are_not_there_yet_are_told(ingested_tables: DeltaTables, home: Path) -> None:
    gray = ingested_tables.dataframe(GRAYSCALE_IMAGES)
    ingested_tables.overwrite(gray.where("label = 'ball'"), GRAYSCALE_IMAGES)
    caches = PetastormCaches(root=str(home / "caches"), color="gray")
    with pytest.raises(ValueError, match=r"grayscale_images lacks \d images of training: materialize grayscale_images"):
        find_or_write_cache(ingested_tables, caches, "training", ranks=1)


def test_pinned_tables_find_the_cache_that_was_written_when_they_were_new(
    ingested_tables: DeltaTables, caches: PetastormCaches
) -> None:
    written = {
        split: find_or_write_cache(ingested_tables, caches, split, ranks=1)[0] for split in ("training", "validation")
    }
    at = {table.name: ingested_tables.version(table) for table in (IMAGE_SPLITS, FEATURED_IMAGES, IMAGE_FILES)}
    gone = read_split(ingested_tables, "training")["path"].head(2).tolist()
    for table in (IMAGE_SPLITS, FEATURED_IMAGES, IMAGE_FILES):
        ingested_tables.overwrite(ingested_tables.dataframe(table).where(~F.col("path").isin(gone)), table)
    assert find_or_write_cache(ingested_tables, caches, "training", ranks=1)[0].name != written["training"].name
    pinned = ingested_tables.as_of(at)
    assert {split: find_or_write_cache(pinned, caches, split, ranks=1) for split in written} == {
        split: (cache, False) for split, cache in written.items()
    }
    in_cache = sorted(row["content"] for row in rows_of(written["training"]))
    shutil.rmtree(caches.root)
    rebuilt, was_written = find_or_write_cache(pinned, caches, "training", ranks=1)
    assert was_written
    assert sorted(row["content"] for row in rows_of(rebuilt)) == in_cache


def test_too_few_images_or_labels_are_told_with_the_remedy(
    ingested_tables: DeltaTables, caches: PetastormCaches
) -> None:
    with pytest.raises(ValueError, match=r"images cannot feed 50 processes: add images to the landing folder"):
        find_or_write_cache(ingested_tables, caches, "validation", ranks=50)
    balls = ingested_tables.dataframe(IMAGE_FILES).where("path LIKE '%/ball/%'")
    ingested_tables.overwrite(balls, IMAGE_FILES)
    with pytest.raises(ValueError, match=r"1 label\(s\) to train on \(ball\).*at least two subfolders"):
        find_or_write_cache(ingested_tables, caches, "training", ranks=1)
