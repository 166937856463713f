"""Splits that folders give are kept, missing ones come from the training folder, and renamed folders change nothing."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from image_assets.data.duplicate_groups import NO_PAIRS, with_equal
from image_assets.data.folder_layout import FolderLayout, to_given_splits
from image_assets.data.given_splits import reassigned, with_given_splits
from image_assets.data.image_splits import EXISTING_COLUMNS, SplitConfig, with_splits
from image_assets.data.sound_splits import leaks, missing_labels, partition_leaks

LANDING = "file:/photos"
CONFIG = SplitConfig()
NONE = pd.DataFrame(columns=[*EXISTING_COLUMNS, "current"])


def images(counts: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """New images in these folders, far from each other; the label is the last folder."""
    chance = np.random.default_rng(seed)
    names = [f"{LANDING}/{folder}/{number}.png" for folder, count in counts.items() for number in range(count)]
    return pd.DataFrame(
        {
            "path": names,
            "image_id": [chance.bytes(32).hex() for _ in names],
            "label": [name.split("/")[-2] for name in names],
            "label_index": 0,
        }
    )


def layout_of(rows: pd.DataFrame) -> FolderLayout:
    return FolderLayout(LANDING, given_splits=to_given_splits(rows["path"], LANDING, "auto", frozenset()))


def assign(
    new: pd.DataFrame, existing: pd.DataFrame, shares: Mapping[str, float] = CONFIG.shares, seed: int = 0
) -> pd.DataFrame:
    """Splits for the new images; equal images belong together."""
    pairs = with_equal(pd.concat([existing, new], ignore_index=True)["image_id"])
    return with_splits(new, existing, pairs, shares, seed)


def assigned(new: pd.DataFrame, existing: pd.DataFrame = NONE, layout: FolderLayout | None = None) -> pd.DataFrame:
    rows = with_given_splits(new, existing, CONFIG.shares, layout or layout_of(new), assign)
    return rows.set_index("path").loc[new["path"]].reset_index()


def as_existing(rows: pd.DataFrame, current: bool = True) -> pd.DataFrame:
    return rows[EXISTING_COLUMNS].assign(current=current)


def test_given_splits_are_kept() -> None:
    new = images({f"{split}/{label}": 10 for split in ("train", "val", "test") for label in ("daisy", "roses")})
    rows = assigned(new)
    splits = {"train": "training", "val": "validation", "test": "test"}
    assert rows["split"].tolist() == [splits[path.split("/")[2]] for path in rows["path"]]
    assert rows["given_split"].equals(rows["split"])
    assert rows["reason"].isna().all()
    assert missing_labels(rows) == []


def test_without_split_folders_nothing_is_given_and_splits_are_as_before() -> None:
    new = images({"daisy": 20, "roses": 20})
    rows = assigned(new)
    assert rows["given_split"].isna().all()
    assert rows["split"].tolist() == assign(new, NONE)["split"].tolist()


@pytest.mark.parametrize(("given", "split", "taken"), [("val", "validation", "test"), ("test", "test", "validation")])
def test_a_split_without_a_folder_is_taken_from_the_training_folder(given: str, split: str, taken: str) -> None:
    new = images({f"{folder}/{label}": 20 for folder in ("train", given) for label in ("daisy", "roses")})
    rows = assigned(new)
    in_training_folder = rows["given_split"] == "training"
    assert Counter(rows.loc[~in_training_folder, "split"]) == Counter({split: 40})
    # 0.15 of 0.85: the shares that training and the split have.
    found = Counter(rows.loc[in_training_folder, "split"])
    assert found.keys() == {"training", taken}
    assert 6 <= found[taken] <= 8
    assert missing_labels(rows) == []
    shuffled = assigned(new.sample(frac=1, random_state=0), layout=layout_of(new)).set_index("path")
    assert shuffled.loc[rows["path"], "split"].tolist() == rows["split"].tolist(), "whatever the order"


def test_leaks_between_given_splits_are_found_and_not_moved() -> None:
    new = images({"train/daisy": 5, "test/daisy": 5, "val/daisy": 5})
    new.loc[5, "image_id"] = new.loc[0, "image_id"]
    rows = assigned(new)
    assert rows.loc[[0, 5], "split"].tolist() == ["training", "test"]
    found = leaks(rows, NO_PAIRS)
    given = set(rows["path"])
    assert partition_leaks(found, given) == (found, [])
    assert partition_leaks(found, given - {rows["path"][0]}) == ([], found)
    assert len(found) == 1


def test_a_near_duplicate_of_a_given_split_is_not_taken_from_the_training_folder() -> None:
    new = images({"train/daisy": 30, "val/daisy": 30})
    new.loc[:29, "image_id"] = new.loc[30:, "image_id"].to_numpy()
    rows = assigned(new)
    assert Counter(rows["split"][:30]) == Counter({"training": 30})


def test_images_that_come_later_into_another_folder_get_a_split_like_any_image() -> None:
    first = images({f"{split}/{label}": 20 for split in ("train", "val", "test") for label in ("daisy", "roses")})
    layout = layout_of(first)
    existing = as_existing(assigned(first))
    later = images({"new": 20, "train/daisy": 5}, seed=1)
    later["image_id"] = [existing["image_id"][45], *later["image_id"][1:]]
    rows = assigned(later, existing, layout)
    assert rows["split"][0] == existing["split"][45] == "validation", "near duplicates share a split"
    assert set(rows["split"][:20]) == {"training", "validation", "test"}
    assert rows["given_split"][:20].isna().all()
    assert set(rows["split"][20:]) == {"training"}


@pytest.mark.parametrize("counts", [{"train": 20, "val": 10}, {"train": 20, "val": 10, "test": 10}])
def test_a_home_with_other_splits_gets_those_of_a_new_home(counts: dict[str, int]) -> None:
    new = images({f"{split}/{label}": count for split, count in counts.items() for label in ("daisy", "roses")})
    former = as_existing(assign(new, NONE, seed=3).assign(given_split=None))
    layout = layout_of(new)
    changed = reassigned(former, CONFIG.shares, layout, assign).set_index("path")
    wanted = assigned(new).set_index("path")
    assert changed["split"].equals(wanted.loc[changed.index, "split"])
    unchanged = former.set_index("path").drop(index=changed.index)
    assert (unchanged["split"] == wanted.loc[unchanged.index, "split"]).all()
    assert len(reassigned(as_existing(wanted.reset_index()), CONFIG.shares, layout, assign)) == 0, "once"
    off = reassigned(as_existing(wanted.reset_index()), CONFIG.shares, FolderLayout(LANDING), assign)
    assert (len(off), off["given_split"].isna().all()) == (len(new), True)
    assert off.set_index("path")["split"].to_dict() == wanted["split"].to_dict(), "splits stay if folders are labels"


def test_a_deleted_split_folder_fills_no_split() -> None:
    before = assigned(images({f"{split}/{label}": 20 for split in ("train", "val", "test") for label in ("a", "b")}))
    is_left = ~before["path"].str.contains("/test/")
    layout = layout_of(before.loc[is_left])
    changed = reassigned(as_existing(before).assign(current=is_left), CONFIG.shares, layout, assign)
    assert set(changed["split"]) == {"test"}
    assert changed["path"].str.contains("/train/").all()
    now = before.loc[is_left].set_index("path")
    now.update(changed.set_index("path"))
    assert missing_labels(now.reset_index()) == []


def test_a_renamed_label_folder_keeps_splits() -> None:
    before = assigned(images({"rose": 30, "daisy": 30}))
    gone = as_existing(before, current=False)
    renamed = images({"rose": 30, "daisy": 30}).replace({"path": {"/rose/": "/roses/"}}, regex=True)
    renamed["label"] = renamed["label"].replace("rose", "roses")
    rows = assigned(renamed.loc[renamed["label"] == "roses"], gone)
    assert rows["image_id"].tolist() == before.loc[before["label"] == "rose", "image_id"].tolist()
    assert rows["split"].tolist() == before.loc[before["label"] == "rose", "split"].tolist()
    assert set(rows["label"]) == {"roses"}
