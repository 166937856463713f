"""The checks pass on a good set, and each fails when its fault is there."""

from pathlib import Path

import dagster as dg
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.data_checks import (
    few_quarantined,
    groups_in_one_split,
    keys_unique,
    label_conflicts,
    labels_in_every_split,
    no_file_lost,
    row_groups_small,
)
from image_assets.data.petastorm_caches import cache_split
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES
from resources.delta_tables import DeltaTables
from resources.horovod_runner import HorovodRunner
from resources.petastorm_cache import PetastormCaches
from tests.conftest import Ingested

pytestmark = pytest.mark.spark


def answer(check: dg.AssetChecksDefinition, **resources: object) -> dg.AssetCheckResult:
    result = check(**resources)
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_a_run_of_the_data_assets_says_what_it_did(ingested: Ingested) -> None:
    events = ingested.run.get_asset_materialization_events()
    metadata = {event.asset_key.to_user_string(): event.materialization.metadata for event in events if event.asset_key}
    assert set(metadata) == {
        "image_files",
        "raw_images",
        "featured_images",
        "grayscale_images",
        "image_samples",
        "image_splits",
    }
    for name, found in metadata.items():
        assert (found["dagster/row_count"].value, found["rows_added"].value) == (16, 16), name
    assert metadata["image_files"]["files_current"].value == 16
    for name in ("raw_images", "featured_images", "grayscale_images", "image_samples"):
        assert "](data:image/jpeg;base64," in str(metadata[name]["images"].value), name


def test_the_checks_pass_on_a_good_set(ingested_tables: DeltaTables, home: Path) -> None:
    caches = PetastormCaches(root=str(home / "caches"))
    for split in ("training", "validation"):
        cache_split(ingested_tables, caches, split, ranks=2)
        small = answer(
            row_groups_small(split),
            delta_tables=ingested_tables,
            petastorm_caches=caches,
            horovod=HorovodRunner(processes=2),
        )
        assert small.passed
    checks = [keys_unique(table) for table in (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)]
    checks += [no_file_lost, few_quarantined, label_conflicts, labels_in_every_split, groups_in_one_split]
    for check in checks:
        assert answer(check, delta_tables=ingested_tables).passed, check.check_key


def test_a_repeated_key_is_found(ingested_tables: DeltaTables) -> None:
    ingested_tables.append(ingested_tables.read(IMAGE_SPLITS).limit(2), IMAGE_SPLITS)
    result = answer(keys_unique(IMAGE_SPLITS), delta_tables=ingested_tables)
    assert (result.passed, result.metadata["repeated_keys"].value) == (False, 2)


def test_a_lost_row_is_found(ingested_tables: DeltaTables) -> None:
    rows = ingested_tables.read(GRAYSCALE_IMAGES)
    lost = rows.orderBy("path").limit(1)
    ingested_tables.overwrite(rows.join(lost, on="path", how="left_anti"), GRAYSCALE_IMAGES)
    result = answer(no_file_lost, delta_tables=ingested_tables)
    assert not result.passed
    assert {name: value.value for name, value in result.metadata.items()} == {
        "missing_in_raw_images": 0,
        "missing_in_featured_images": 0,
        "missing_in_grayscale_images": 1,
        "not_in_the_ledger": 0,
    }


def test_many_quarantined_files_are_a_warning_with_their_reasons(ingested_tables: DeltaTables) -> None:
    broken = ingested_tables.read(IMAGE_FILES).limit(2)
    ingested_tables.merge(
        broken.withColumn("state", F.lit("quarantined")).withColumn("reason", F.lit("empty")), IMAGE_FILES
    )
    result = answer(few_quarantined, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["quarantined_empty"].value == 2


def test_an_image_under_two_labels_is_a_warning_until_one_of_its_files_is_gone(ingested_tables: DeltaTables) -> None:
    image = ingested_tables.read(FEATURED_IMAGES).where("label = 'ball'").orderBy("path").limit(1)
    ball = image.collect()[0]
    add_current(ingested_tables, image, path="file:/cone/one.png", label="cone")
    result = answer(label_conflicts, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (result.metadata["images"].value, result.metadata["near_duplicate_groups"].value) == (1, 0)
    (record,) = result.metadata["files"].records
    assert set(str(record.data["paths"]).splitlines()) == {ball.path, "file:/cone/one.png"}
    gone = ingested_tables.read(IMAGE_FILES).where(F.col("path") == ball.path).withColumn("state", F.lit("missing"))
    ingested_tables.merge(gone, IMAGE_FILES)
    assert answer(label_conflicts, delta_tables=ingested_tables).passed


def test_the_same_image_twice_under_one_label_or_none_is_no_conflict(ingested_tables: DeltaTables) -> None:
    image = ingested_tables.read(FEATURED_IMAGES).orderBy("path").limit(1)
    add_current(ingested_tables, image, path="file:/again.png", label=image.collect()[0].label)
    add_current(ingested_tables, image, path="file:/unlabelled.png", label=None)
    assert answer(label_conflicts, delta_tables=ingested_tables).passed


def test_near_duplicates_under_two_labels_are_listed_and_no_conflict(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.read(IMAGE_SPLITS)
    ball, cube = (splits.where(f"label = '{label}'").orderBy("path").first() for label in ("ball", "cube"))
    assert ball is not None
    assert cube is not None
    group = F.when(F.col("path") == cube.path, ball.duplicate_group).otherwise(F.col("duplicate_group"))
    ingested_tables.overwrite(splits.withColumn("duplicate_group", group), IMAGE_SPLITS)
    result = answer(label_conflicts, delta_tables=ingested_tables)
    assert (result.passed, result.metadata["near_duplicate_groups"].value) == (True, 1)


def add_current(delta_tables: DeltaTables, image: DataFrame, path: str, label: str | None) -> None:
    """One more current file with the image's content."""
    copy = image.withColumn("path", F.lit(path)).withColumn("label", F.lit(label))
    files = delta_tables.read(IMAGE_FILES).join(image.select("image_id"), on="image_id", how="left_semi").limit(1)
    delta_tables.append(copy, FEATURED_IMAGES)
    delta_tables.merge(files.withColumn("path", F.lit(path)), IMAGE_FILES)


def test_a_label_that_a_split_lacks_is_named(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.read(IMAGE_SPLITS)
    ingested_tables.overwrite(splits.where("NOT (label = 'cube' AND split = 'test')"), IMAGE_SPLITS)
    result = answer(labels_in_every_split, delta_tables=ingested_tables)
    assert (result.passed, result.metadata["lacking_in_test"].value) == (False, "cube")
    assert result.metadata["lacking_in_training"].value == "none"


def test_a_group_that_is_torn_is_named(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.read(IMAGE_SPLITS)
    ingested_tables.overwrite(splits.withColumn("duplicate_group", F.lit("ab12")), IMAGE_SPLITS)
    result = answer(groups_in_one_split, delta_tables=ingested_tables)
    assert (result.passed, result.metadata["groups"].value) == (False, "ab12")
    aside = splits.withColumn("split", F.when(F.col("split") == "training", "training"))
    ingested_tables.overwrite(aside.withColumn("duplicate_group", F.lit("ab12")), IMAGE_SPLITS)
    assert answer(groups_in_one_split, delta_tables=ingested_tables).passed, "what is set aside is in no split"


def test_row_groups_that_are_too_large_are_found(ingested_tables: DeltaTables, home: Path) -> None:
    caches = PetastormCaches(root=str(home / "caches"))
    cache, _ = cache_split(ingested_tables, caches, "training", ranks=1)
    large = ingested_tables.spark.range(0, 8, 1, 1).selectExpr(
        f"cast(repeat('x', {2**20}) AS binary) content", "id label_index"
    )
    large.write.mode("append").option("compression", "uncompressed").parquet(cache.url)
    files = {file.name: file.stat().st_size for file in Path(cache.url.removeprefix("file://")).glob("part-*")}
    (Path(cache.url.removeprefix("file://")) / "_cache.json").write_text(
        f'{{"rows": 19, "files": {files}}}'.replace("'", '"')
    )
    result = answer(
        row_groups_small("training"),
        delta_tables=ingested_tables,
        petastorm_caches=caches,
        horovod=HorovodRunner(processes=1),
    )
    assert (result.passed, result.metadata["too_large"].value) == (False, 1)
