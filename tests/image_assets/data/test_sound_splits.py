"""The rows of a split are the current ones, and unsound splits stop a training."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from image_assets.data.duplicate_groups import to_groups, to_pairs
from image_assets.data.image_splits import read_split, split_digest, split_rows, training_labels, with_content
from image_assets.data.sound_splits import (
    UnsoundSplits,
    current_assignments,
    find_leaks,
    in_splits,
    leaks,
    missing_labels,
    require_sound_splits,
)
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import file_layout
from resources.duplicates import DuplicateRules
from tests.support.fingerprints import write_fingerprints
from tests.support.shots import compressed, cropped, part_under_a_camera
from tests.support.tables import tables_at


@pytest.mark.spark
def test_a_split_holds_the_images_whose_files_are_there_unchanged(ingested_tables: DeltaTables) -> None:
    rows = split_rows(ingested_tables, "training")
    assigned = ingested_tables.dataframe(IMAGE_SPLITS).where("split = 'training'")
    assert sorted(rows.collect()) == sorted(assigned.select(rows.columns).collect())
    before = read_split(ingested_tables, "training")
    assert sorted(before.itertuples(index=False, name=None)) == sorted(map(tuple, rows.collect()))

    gone, replaced, unchanged = rows.orderBy("path").limit(3).collect()
    states = ingested_tables.dataframe(IMAGE_FILES)
    ingested_tables.overwrite(
        states.withColumn("state", F.when(F.col("path") == gone.path, "missing").otherwise(F.col("state"))).withColumn(
            "image_id", F.when(F.col("path") == replaced.path, "0" * 64).otherwise(F.col("image_id"))
        ),
        IMAGE_FILES,
    )
    left = {row.path for row in split_rows(ingested_tables, "training").collect()}
    assert {row.path for row in assigned.collect()} - left == {gone.path, replaced.path}
    assert unchanged.path in left
    after = read_split(ingested_tables, "training")
    assert sorted(after["path"]) == sorted(left)
    assert split_digest(after) != split_digest(before)
    assert training_labels(ingested_tables) == ["ball", "cube"]


@pytest.mark.spark
def test_content_comes_with_its_own_row(ingested_tables: DeltaTables) -> None:
    rows = split_rows(ingested_tables, "test")
    contents = {row.path: row.content for row in ingested_tables.dataframe(FEATURED_IMAGES).collect()}
    found = {row.path: row.content for row in with_content(ingested_tables, rows).collect()}
    assert found == {row.path: contents[row.path] for row in rows.collect()} != {}


def test_the_digest_is_of_images_and_labels_in_any_order() -> None:
    rows = pd.DataFrame({"path": ["a", "b", "c"], "image_id": ["1", "2", "3"], "label": ["ball", "cube", "ball"]})
    assert split_digest(rows.iloc[::-1]) == split_digest(rows)
    other_label = rows.assign(label=rows["label"].replace("ball", "cone"))
    twice = pd.concat([rows, rows.head(1), rows.head(1)])
    assert len({split_digest(some) for some in (rows, other_label, twice, rows.head(0))}) == 4


SPLITS = ("training", "validation", "test")


def assignments(splits: list[str | None], labels: list[str] | None = None) -> pd.DataFrame:
    """An image for each split, far from every other one."""
    chance = np.random.default_rng(0)
    ids = [chance.bytes(32).hex() for _ in splits]
    return pd.DataFrame(
        {
            "path": [f"file:/{number:06}.png" for number in range(len(splits))],
            "image_id": ids,
            "label": labels or ["ball"] * len(splits),
            "label_index": 0,
            "perceptual_hash": [chance.bytes(8).hex() for _ in splits],
            "mirrored_hash": [chance.bytes(8).hex() for _ in splits],
            "duplicate_group": ids,
            "split": splits,
            "reason": None,
            "given_split": None,
            "duplicates": "near",
        }
    )


def with_twin(images: pd.DataFrame, column: str) -> pd.DataFrame:
    """The images, of which the last has the value of the first."""
    return images.assign(**{column: [*images[column][:-1], images[column][0]]})


NONE_NEAR = np.empty((2, 0), dtype=np.int64)
FIRST_AND_LAST = np.array([[0], [2]])


def test_a_near_duplicate_in_another_split_is_a_leak() -> None:
    images = assignments(["training", "training", "test"])
    assert leaks(images, NONE_NEAR) == []
    (leak,) = leaks(images, FIRST_AND_LAST)
    assert leak.paths == {"training": ["file:/000000.png"], "test": ["file:/000002.png"]}
    assert leaks(assignments(["training"] * 3), FIRST_AND_LAST) == [], "in its own split"


@pytest.mark.parametrize("column", ["image_id", "duplicate_group"])
def test_an_equal_image_or_one_of_the_same_group_in_another_split_is_a_leak(column: str) -> None:
    images = with_twin(assignments(["training", "training", "test"]), column)
    (leak,) = leaks(images, NONE_NEAR)
    assert leak.paths == {"training": ["file:/000000.png"], "test": ["file:/000002.png"]}
    assert leaks(in_splits(images.assign(split=["training", "training", None])), NONE_NEAR) == [], "set aside"


@pytest.mark.parametrize(("duplicates", "found"), [("near", 1), (None, 1), ("exact", 1), ("off", 0)])
def test_equal_images_are_no_leak_where_duplicates_are_not_grouped(duplicates: str | None, found: int) -> None:
    images = with_twin(assignments(["training", "test"]), "image_id").assign(duplicates=duplicates)
    assert len(leaks(images, NONE_NEAR)) == found


def test_a_label_lacks_where_it_has_no_image_that_is_not_set_aside() -> None:
    images = assignments([*SPLITS, "training", None, None], ["ball"] * 3 + ["cube", "cube", "cone"])
    found = [(missing.label, missing.images, missing.splits) for missing in missing_labels(images)]
    assert found == [("cone", 1, list(SPLITS)), ("cube", 2, ["validation", "test"])]
    assert missing_labels(images[:3]) == missing_labels(images[:0]) == []


def write(delta_tables: DeltaTables, images: pd.DataFrame, state: str = "current") -> None:
    """The tables image_splits and image_files of these images."""
    delta_tables.create(IMAGE_SPLITS)
    files = write_files(images.to_dict("records"), delta_tables.uri(IMAGE_SPLITS), file_layout(IMAGE_SPLITS))
    delta_tables.append_files(IMAGE_SPLITS, list(files))
    rows = [
        {**dict.fromkeys(IMAGE_FILES.columns.fieldNames()), "path": path, "image_id": image_id, "state": state}
        for path, image_id in zip(images["path"], images["image_id"], strict=True)
    ]
    delta_tables.merge(pa.Table.from_pylist(rows), IMAGE_FILES, updates={})


def test_a_refusal_names_labels_and_leaks_and_says_what_to_do(tmp_path: Path) -> None:
    delta_tables = tables_at(tmp_path)
    require_sound_splits(delta_tables)
    labels = ["ball"] * 6 + [f"label {number:03}" for number in range(500)]
    images = assignments([*SPLITS * 2, *["training"] * 500], labels)
    write(delta_tables, with_twin(images, "duplicate_group").assign(label=labels))
    with pytest.raises(UnsoundSplits) as refused:
        require_sound_splits(delta_tables)
    lines = str(refused.value).splitlines()
    assert "500 label(s) have no image in some split, and fewer than two others are left:" in lines
    assert "- label 000 (1 images) has none in validation and test" in lines
    assert "- and 490 more" in lines
    assert "IMAGE_ASSETS_EXCLUDE" in lines[-1]


def test_what_is_gone_neither_leaks_nor_stands_for_a_label(tmp_path: Path) -> None:
    delta_tables = tables_at(tmp_path)
    write(delta_tables, assignments(list(SPLITS)))
    twin = assignments(["test"]).assign(path="file:/twin.png", label="cube")  # looks like the first, in training
    write(delta_tables, twin, state="missing")
    require_sound_splits(delta_tables)
    write(delta_tables, twin.assign(path="file:/other.png"))
    with pytest.raises(UnsoundSplits, match=r"(?s)1 group.*file:/other\.png.*cube \(1 images\) has none in training"):
        require_sound_splits(delta_tables)


def test_100000_images_are_looked_through_in_seconds() -> None:
    images = assignments(["training", "test"] * 50_000)
    near = np.arange(100_000).reshape(-1, 2).T
    started = time.process_time()
    assert len(leaks(images, near)) == 50_000
    assert len(missing_labels(images)) == 1
    assert time.process_time() - started < 30


@pytest.mark.parametrize("state", ["current", "missing"])
def test_edits_that_the_assignment_could_not_find_among_many_lookalikes_are_no_leak(tmp_path: Path, state: str) -> None:
    tables = tables_at(tmp_path)
    part, *others = (part_under_a_camera(number, scratched=True, ground="rough") for number in (103, *range(60)))
    edit = compressed(cropped(part, 1, 1, 0.95))
    keys = write_fingerprints(tables, {"part": part, "edit": edit, **{f"{n}": one for n, one in enumerate(others)}})
    together, apart = (
        to_groups(len(some), to_pairs(tables, some, np.full(len(some), True), DuplicateRules()))
        for some in (keys[:2], keys)
    )
    assert (together[0] == together[1], apart[0] == apart[1]) == (True, False)
    images = assignments(np.where(apart == apart[1], "test", "training").tolist())
    images = images.assign(**keys, duplicate_group=apart.astype(str))
    write(tables, images[:2])
    write(tables, images[2:], state)
    assert find_leaks(tables, current_assignments(tables)) == []
