"""The checks pass on a good set, and each fails when its fault is there."""

import shutil
from io import BytesIO
from pathlib import Path

import dagster as dg
import pytest
from PIL import ImageOps
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.data_checks import (
    few_quarantined,
    groups_in_one_split,
    label_conflicts,
    labels_in_every_split,
    no_file_lost,
)
from image_assets.data.image_splits import image_splits
from image_assets.data.sound_splits import UnsoundSplits, require_sound_splits
from image_assets.data.table_checks import keys_unique
from image_assets.data.training_cache import training_cache
from image_assets.data.validation_cache import validation_cache
from image_assets.jobs.repair_tables import repair
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from resources.training import TrainingProcesses
from tests.conftest import Ingested
from tests.support.data_run import run_data
from tests.support.images import jpeg, picture, png, put
from tests.support.tables import upsert

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
    for name, found in metadata.items():
        assert found["bytes"].value > 0, name
        assert found["files"].value >= 1, name
    for name, figure in (("featured_images", "arrivals"), ("image_splits", "splits")):
        assert "](data:image/png;base64," in str(metadata[name][figure].value), name
    for name in ("raw_images", "featured_images", "grayscale_images", "image_samples"):
        assert "](data:image/jpeg;base64," in str(metadata[name]["images"].value), name


def test_the_checks_pass_on_a_good_set(ingested_tables: DeltaTables) -> None:
    checks = [keys_unique(table) for table in (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)]
    checks += [no_file_lost, few_quarantined, label_conflicts, labels_in_every_split, groups_in_one_split]
    for check in checks:
        assert answer(check, delta_tables=ingested_tables).passed, check.check_key


def test_a_repeated_key_is_found(ingested_tables: DeltaTables) -> None:
    ingested_tables.append(ingested_tables.dataframe(IMAGE_SPLITS).limit(2), IMAGE_SPLITS)
    result = answer(keys_unique(IMAGE_SPLITS), delta_tables=ingested_tables)
    assert (result.passed, result.metadata["repeated_keys"].value) == (False, 2)


def test_a_lost_row_is_found(ingested_tables: DeltaTables) -> None:
    rows = ingested_tables.dataframe(GRAYSCALE_IMAGES)
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
    broken = ingested_tables.dataframe(IMAGE_FILES).limit(2)
    broken = broken.withColumn("state", F.lit("quarantined")).withColumn("reason", F.lit("empty"))
    upsert(broken, ingested_tables, IMAGE_FILES)
    result = answer(few_quarantined, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["quarantined_empty"].value == 2
    assert str(result.description).startswith("2 of 16 files are quarantined, more than 5%: `image_files` lists")


def test_an_image_under_two_labels_is_a_warning_until_one_of_its_files_is_gone(ingested_tables: DeltaTables) -> None:
    image = ingested_tables.dataframe(FEATURED_IMAGES).where("label = 'ball'").orderBy("path").limit(1)
    ball = image.collect()[0]
    add_current(ingested_tables, image, path="file:/cone/one.png", label="cone")
    result = answer(label_conflicts, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (result.metadata["images"].value, result.metadata["near_duplicate_groups"].value) == (1, 0)
    (record,) = result.metadata["files"].records
    assert set(str(record.data["paths"]).splitlines()) == {ball.path, "file:/cone/one.png"}
    gone = (
        ingested_tables.dataframe(IMAGE_FILES).where(F.col("path") == ball.path).withColumn("state", F.lit("missing"))
    )
    upsert(gone, ingested_tables, IMAGE_FILES)
    assert answer(label_conflicts, delta_tables=ingested_tables).passed


def test_the_same_image_twice_under_one_label_or_none_is_no_conflict(ingested_tables: DeltaTables) -> None:
    image = ingested_tables.dataframe(FEATURED_IMAGES).orderBy("path").limit(1)
    add_current(ingested_tables, image, path="file:/again.png", label=image.collect()[0].label)
    add_current(ingested_tables, image, path="file:/unlabeled.png", label=None)
    assert answer(label_conflicts, delta_tables=ingested_tables).passed


def test_near_duplicates_under_two_labels_are_listed_and_no_conflict(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.dataframe(IMAGE_SPLITS)
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
    files = delta_tables.dataframe(IMAGE_FILES).join(image.select("image_id"), on="image_id", how="left_semi").limit(1)
    delta_tables.append(copy, FEATURED_IMAGES)
    upsert(files.withColumn("path", F.lit(path)), delta_tables, IMAGE_FILES)


def test_a_label_that_a_split_lacks_is_named(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.dataframe(IMAGE_SPLITS)
    ingested_tables.overwrite(splits.where("NOT (label = 'cube' AND split = 'test')"), IMAGE_SPLITS)
    result = answer(labels_in_every_split, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert result.metadata["lacking_in_test"].value == "cube"
    assert result.metadata["lacking_in_training"].value == "none"
    assert "cube (7 images) has none in test" in str(result.description)
    assert "or exclude the folder with IMAGE_ASSETS_EXCLUDE" in str(result.description)
    ingested_tables.overwrite(splits.limit(0), IMAGE_SPLITS)
    assert "no image has a label" in str(answer(labels_in_every_split, delta_tables=ingested_tables).description)


def test_a_group_that_is_torn_is_listed_with_its_files(ingested_tables: DeltaTables) -> None:
    splits = ingested_tables.dataframe(IMAGE_SPLITS)
    ingested_tables.overwrite(splits.withColumn("duplicate_group", F.lit("ab12")), IMAGE_SPLITS)
    result = answer(groups_in_one_split, delta_tables=ingested_tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert result.metadata["groups"].value == 1
    (record,) = result.metadata["files"].records
    assert record.data["files"] == 16
    in_test = {row.path for row in splits.where("split = 'test'").collect()}
    assert set(str(record.data["test"]).splitlines()) <= in_test
    assert "delete the folder of the table image_splits" in str(result.description)
    aside = splits.withColumn("split", F.when(F.col("split") == "training", "training"))
    ingested_tables.overwrite(aside.withColumn("duplicate_group", F.lit("ab12")), IMAGE_SPLITS)
    assert answer(groups_in_one_split, delta_tables=ingested_tables).passed, "what is set aside is in no split"


PLANTED = 200  # a ball that no other one looks like


def mirrored(number: int) -> bytes:
    """The picture with left and right exchanged, as JPEG."""
    content = BytesIO()
    ImageOps.mirror(picture(number)).save(content, "JPEG", quality=80)
    return content.getvalue()


def refused_before_training(delta_tables: DeltaTables, home: Path) -> tuple[set[str], set[str]]:
    """A run of image_splits, its two checks and the caches: the checks that fail, the caches that were not written."""
    run = dg.materialize(
        [image_splits, training_cache, validation_cache, groups_in_one_split, labels_in_every_split],
        selection=dg.AssetSelection.assets("image_splits", "training_cache", "validation_cache"),
        resources={
            "delta_tables": delta_tables,
            "image_folder": ImageFolder(root=str(home / "landing"), settle_seconds=0),
            "petastorm_caches": PetastormCaches(root=str(home / "caches")),
            "training_processes": TrainingProcesses(processes=1),
            "duplicate_rules": DuplicateRules(),
        },
        instance=dg.DagsterInstance.ephemeral(),
        raise_on_error=False,
    )
    failed = {check.check_name for check in run.get_asset_check_evaluations() if not check.passed}
    written = {event.asset_key.to_user_string() for event in run.get_asset_materialization_events() if event.asset_key}
    assert run.success == (not failed)
    return failed, {"training_cache", "validation_cache"} - written


def test_twins_are_caught_across_labels_and_splits_before_anything_is_trained(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path, home: Path
) -> None:
    for number in range(16):
        label = ("ball", "cube")[number % 2]
        put(landing, f"{label}/{number}.png", png(number))
    put(landing, "ball/original.png", png(PLANTED))
    put(landing, "cube/twin.jpg", jpeg(PLANTED, quality=70))
    put(landing, "cube/mirrored.jpg", mirrored(PLANTED))
    run_data(delta_tables, image_folder)
    assert refused_before_training(delta_tables, home) == (set(), set())
    splits = delta_tables.dataframe(IMAGE_SPLITS)
    planted = splits.where("path RLIKE '/(original|twin|mirrored)[.]'").select("split", "duplicate_group").collect()
    assert (len(planted), len(set(planted))) == (3, 1), "they share a split and a group"
    conflicts = answer(label_conflicts, delta_tables=delta_tables).metadata
    assert conflicts["near_duplicate_groups"].value == 1
    (record,) = conflicts["near_duplicates"].records
    assert {Path(path).name for path in str(record.data["paths"]).splitlines()} == {
        "original.png",
        "twin.jpg",
        "mirrored.jpg",
    }
    require_sound_splits(delta_tables)

    other = "test" if planted[0].split != "test" else "training"
    for twin in ("twin.jpg", "mirrored.jpg"):
        moved = F.col("path").endswith(twin)
        torn = splits.withColumn("split", F.when(moved, other).otherwise(F.col("split")))
        torn = torn.withColumn("duplicate_group", F.when(moved, twin).otherwise(F.col("duplicate_group")))
        delta_tables.overwrite(torn, IMAGE_SPLITS)
        caches = {"training_cache", "validation_cache"}
        assert refused_before_training(delta_tables, home) == ({"groups_in_one_split"}, caches), twin
        with pytest.raises(UnsoundSplits, match=rf"(?s)1 group\(s\) of near duplicates.*{twin}.*delete the others"):
            require_sound_splits(delta_tables)
    shutil.rmtree(delta_tables.uri(IMAGE_SPLITS))
    repair(delta_tables, ImageFolder(root=str(home / "landing"), settle_seconds=0))
    assert refused_before_training(delta_tables, home) == (set(), set()), "the remedy is one"
