"""The checks of labels and splits that folders give: what they warn of, and what blocks a training."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from image_assets.data.data_checks import groups_in_one_split, labels_in_every_split
from image_assets.data.folder_checks import folders_give_labels, given_splits_apart, labels_spelled_alike
from image_assets.data.folder_layout import record_splits
from image_assets.data.given_labels import GIVEN
from image_assets.data.image_splits import labels_in_all_splits, training_labels
from image_assets.data.sound_splits import require_sound_splits
from image_assets.models.model_evaluations import rows_to_evaluate
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout
from resources.files.image_folder import ImageFolder
from tests.support.tables import tables_at

FOLDER = ImageFolder(root="/photos")


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path)


def append(delta_tables: DeltaTables, table: Table, rows: list[dict[str, Any]]) -> None:
    delta_tables.create(table)
    whole = [{**dict.fromkeys(table.columns.fieldNames()), **row} for row in rows]
    delta_tables.append_files(table, list(write_files(whole, delta_tables.uri(table), file_layout(table))))


def add(delta_tables: DeltaTables, *names: str, splits: dict[str, str | None] | None = None) -> list[dict[str, Any]]:
    """Current images in these folders, far from each other; the label is the file's folder."""
    chance = np.random.default_rng(len(names))
    keys = [{"path": f"{FOLDER.path}/{name}", "image_id": chance.bytes(32).hex()} for name in names]
    rows = [{**IMAGE_FILES_ROW, **key} for key in keys]
    delta_tables.merge(pa.Table.from_pylist(rows), IMAGE_FILES, updates={})
    labels = {label: number for number, label in enumerate(sorted({name.split("/")[-2] for name in names}))}
    images = [
        {**key, "label": (label := name.split("/")[-2]), "label_index": labels[label]}
        for key, name in zip(keys, names, strict=True)
    ]
    append(delta_tables, FEATURED_IMAGES, images)
    if splits is not None:
        assigned = [
            {
                **image,
                "split": splits[name],
                "duplicate_group": image["image_id"],
                "perceptual_hash": chance.bytes(8).hex(),
                "given_split": splits[name] if name.split("/")[0] in ("train", "val", "test") else None,
            }
            for image, name in zip(images, names, strict=True)
        ]
        append(delta_tables, IMAGE_SPLITS, assigned)
    return images


IMAGE_FILES_ROW = {**dict.fromkeys(IMAGE_FILES.columns.fieldNames()), "state": "current"}


def answer(check: dg.AssetChecksDefinition, **resources: object) -> dg.AssetCheckResult:
    result = check(**resources)
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_labels_that_look_like_something_else_are_warned_of(tables: DeltaTables) -> None:
    add(tables, "2023/roses/a.png", "2024/daisy/b.png")
    result = answer(folders_give_labels, delta_tables=tables, image_folder=FOLDER)
    assert not result.passed
    assert "set IMAGE_ASSETS_LABEL_LEVEL=2 if the labels are daisy, roses" in str(result.description)
    deeper = ImageFolder(root=FOLDER.root, label_level=2)
    assert answer(folders_give_labels, delta_tables=tables, image_folder=deeper).passed
    append(tables, GIVEN_LABELS, [{"path": f"{FOLDER.path}/2023/roses/a.png", "label": "roses", "state": GIVEN}])
    assert answer(folders_give_labels, delta_tables=tables, image_folder=FOLDER).passed, "a label table"


def test_the_check_says_that_folders_are_splits(tables: DeltaTables) -> None:
    add(tables, *(f"{split}/{label}/a.png" for split in ("train", "val") for label in ("daisy", "roses")))
    assert record_splits(tables, FOLDER)
    result = answer(folders_give_labels, delta_tables=tables, image_folder=FOLDER)
    assert result.passed
    assert "first-level folders are splits (training, validation), and test images are taken" in str(result.description)
    assert result.metadata["splits_from_training"].value == "test"


def test_labels_that_look_the_same_are_listed_with_their_images(tables: DeltaTables) -> None:
    add(
        tables,
        "Roses/a.png",
        "roses/b.png",
        "roses/c.png",
        "roses /d.png",
        "tulips/e.png",
        "cafe\u0301/f.png",
        "café/g.png",
    )
    result = answer(labels_spelled_alike, delta_tables=tables)
    assert not result.passed
    assert result.metadata["groups"].value == 2
    assert "'Roses' (1 images) and 'roses' (2 images) and 'roses ' (1 images)" in str(result.description)
    assert r"'cafe\u0301' (1 images) and 'caf\xe9' (1 images)" in str(result.description)
    assert "IMAGE_ASSETS_MERGE_LABELS=on" in str(result.description)


def test_differing_labels_pass(tables: DeltaTables) -> None:
    assert answer(labels_spelled_alike, delta_tables=tables).passed, "no table yet"
    add(tables, "roses/b.png", "tulips/e.png")
    assert answer(labels_spelled_alike, delta_tables=tables).passed


def in_splits(counts: dict[str, dict[str, int]]) -> dict[str, str | None]:
    """Names of images of each label, with their splits."""
    return {
        f"{label}/{split}{number}.png": split
        for label, of_label in counts.items()
        for split, count in of_label.items()
        for number in range(count)
    }


ENOUGH = {"training": 4, "validation": 1, "test": 1}


def test_small_labels_are_left_out_of_training_and_block_nothing(tables: DeltaTables) -> None:
    # 6, 6, 2 and 1 images.
    small = {"tulips": {"training": 1, "test": 1}, "sunflowers": {"training": 1}}
    names = in_splits({"daisy": ENOUGH, "roses": ENOUGH, **small})
    add(tables, *names, splits=names)
    result = answer(labels_in_every_split, delta_tables=tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "these labels are left out of training" in str(result.description)
    assert "sunflowers (1 images) has none in validation and test" in str(result.description)
    require_sound_splits(tables)
    assert training_labels(tables) == labels_in_all_splits(tables) == ["daisy", "roses"]
    rows, labels = rows_to_evaluate(tables)
    assert (sorted(rows["label"]), labels) == (["daisy", "roses"], ["daisy", "roses"]), "no image of another label"


def test_a_training_is_blocked_when_fewer_than_two_labels_remain(tables: DeltaTables) -> None:
    names = in_splits({"daisy": ENOUGH, "tulips": {"training": 1, "test": 1}})
    add(tables, *names, splits=names)
    result = answer(labels_in_every_split, delta_tables=tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 label(s) are left to train on" in str(result.description)
    with pytest.raises(
        ValueError, match=r"fewer than two others are left:\n- tulips \(2 images\) has none in validation"
    ):
        require_sound_splits(tables)
    with pytest.raises(ValueError, match=r"1 label\(s\) to train on \(daisy\).*Left out: tulips \(2 images\)"):
        training_labels(tables)


def test_leaks_between_given_splits_are_reported_and_block_nothing(tables: DeltaTables) -> None:
    splits = {"train": "training", "val": "validation", "test": "test"}
    names = {f"{folder}/{label}/a.png": split for folder, split in splits.items() for label in ("daisy", "roses")}
    images = add(tables, *names, splits=names)
    assert answer(given_splits_apart, delta_tables=tables).passed
    twin = {
        **images[0],
        "duplicate_group": images[0]["image_id"],
        "path": f"{FOLDER.path}/test/daisy/twin.png",
        "split": "test",
        "given_split": "test",
    }
    append(tables, IMAGE_SPLITS, [twin])
    files = pa.Table.from_pylist([{**IMAGE_FILES_ROW, "path": twin["path"], "image_id": twin["image_id"]}])
    tables.merge(files, IMAGE_FILES, updates={})
    result = answer(given_splits_apart, delta_tables=tables)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["groups"].value == 1
    assert "train/daisy/a.png" in str(result.description)
    assert "test/daisy/twin.png" in str(result.description)
    assert answer(groups_in_one_split, delta_tables=tables).passed
    require_sound_splits(tables)
