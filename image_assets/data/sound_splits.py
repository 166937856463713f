"""Whether splits are fit for training: no photograph is in two of them, and each label is in all of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.data.duplicate_groups import Column, Pairs, same_photograph_pairs, to_groups, with_equal
from image_assets.data.folder_layout import SPLITS
from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.unchanged import has_passed

LEAKS_CHECK = "groups_in_one_split"  # the asset check of image_splits
LEAKS_READ = (IMAGE_SPLITS, FEATURED_IMAGES, IMAGE_FILES)  # the tables that it reads
LISTED_PROBLEMS = 10
LEAK_PATHS = 3  # listed for each split
LEAKS_REMEDY = (
    "keep the files of one split and delete the others from the landing folder, or delete the folder of the table "
    "image_splits and launch the job repair_tables to assign every image again"
)
MISSING_LABELS_REMEDY = (
    "add different photographs to the label's folder (three distinct ones cover all splits), or exclude the folder "
    "with IMAGE_ASSETS_EXCLUDE"
)
ASSIGNED_COLUMNS = [
    *(*IMAGE_KEYS, "label", "label_index"),
    *("duplicate_group", "split", "given_split", "duplicates"),
]


class UnsoundSplits(ValueError):
    """Splits whose metrics would be wrong, or missing for some label."""


@dataclass(frozen=True)
class Leak:
    """A group of near duplicates in several splits: the paths of its files in each."""

    paths: dict[str, list[str]]

    @property
    def files(self) -> int:
        """The number of files in all splits."""
        return sum(map(len, self.paths.values()))

    def first_paths(self, split: str) -> list[str]:
        """The first paths in the split."""
        return self.paths.get(split, [])[:LEAK_PATHS]

    def __str__(self) -> str:
        return "; ".join(f"{split}: {', '.join(self.first_paths(split))}" for split in sorted(self.paths))


@dataclass(frozen=True)
class MissingLabel:
    """A label without images in some splits, and its number of images."""

    label: str
    images: int
    splits: list[str]

    def __str__(self) -> str:
        return f"{self.label} ({self.images} images) has none in {' and '.join(self.splits)}"


def current_assignments(delta_tables: DeltaTables) -> pd.DataFrame:
    """The labeled rows of image_splits whose files are current; only these are trained on."""
    assigned = delta_tables.read(IMAGE_SPLITS, ASSIGNED_COLUMNS, pc.field("label").is_valid()).to_pandas()
    return assigned.merge(current_keys(delta_tables), on=IMAGE_KEYS)


def find_leaks(delta_tables: DeltaTables, assigned: pd.DataFrame) -> list[Leak]:
    """The leaks among current images; near duplicates are looked for again, whatever the table says about them."""
    images = in_splits(assigned)
    # Among all images ever assigned, as in the assignment: hashes propose only each image's nearest lookalikes, and
    # with some images left out, these would be others.
    everything = delta_tables.read(IMAGE_SPLITS, ["image_id"]).to_pandas()
    ids = pd.concat([images["image_id"], everything["image_id"]], ignore_index=True)
    splits = images["split"].where(compared_by(images, "near")).reindex(ids.index)
    return leaks(images, same_photograph_pairs(delta_tables, ids, np.full(len(ids), True), splits))


def in_splits(assigned: pd.DataFrame) -> pd.DataFrame:
    """The images in a split: those that were set aside are in none, and connect no groups."""
    return assigned.dropna(subset=["split"]).reset_index(drop=True)


def compared_by(images: pd.DataFrame, *duplicates: str) -> Column:
    """Which images were assigned by one of these rules; old ones by `near`."""
    return images["duplicates"].fillna("near").isin(duplicates)


def leaks(images: pd.DataFrame, near: Pairs) -> list[Leak]:
    """The groups in several splits, largest first: of equal images or near ones, and by the recorded duplicate_group.

    Args:
        images: Rows of image_splits that are in a split, numbered from 0.
        near: Numbers of images that are near duplicates.
    """
    same = with_equal(images["image_id"].where(compared_by(images, "near", "exact")))
    images = images.assign(image_group=to_groups(len(images), np.concatenate([same, near], axis=1)))
    found: list[Leak] = []
    for by in ("image_group", "duplicate_group"):
        splits = images.drop_duplicates([by, "split"])
        leaking = images[by].isin(splits.loc[splits[by].duplicated(), by])
        groups: dict[object, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        members = images.loc[leaking].sort_values("path")
        for group, split, path in zip(members[by], members["split"], members["path"], strict=True):
            groups[group][split].append(path)
        found += map(Leak, groups.values())
        images = images.loc[~leaking]
    return sorted(found, key=lambda leak: -leak.files)


def given_and_other_leaks(delta_tables: DeltaTables, assigned: pd.DataFrame) -> tuple[list[Leak], list[Leak]]:
    """The leaks between splits that folders give to all their files, which are only reported; and the others.

    `assigned` are the `current_assignments`.
    """
    given = set(assigned.loc[assigned["given_split"].notna(), "path"])
    return partition_leaks(find_leaks(delta_tables, assigned), given)


def partition_leaks(found: Iterable[Leak], given: set[str]) -> tuple[list[Leak], list[Leak]]:
    """The leaks that have only files with given splits, and the others."""
    of_given, others = [], []
    for leak in found:
        (of_given if given.issuperset(chain(*leak.paths.values())) else others).append(leak)
    return of_given, others


def missing_labels(assigned: pd.DataFrame) -> list[MissingLabel]:
    """The labels that are missing in some split, in alphabetical order."""
    present = set(zip(assigned["label"], assigned["split"], strict=True))
    found = [
        MissingLabel(label, images, [split for split in SPLITS if (label, split) not in present])
        for label, images in sorted(Counter(assigned["label"]).items())
    ]
    return [one for one in found if one.splits]


def to_bullets(found: Sequence[object]) -> str:
    """The first items as a bulleted list, and the number of the others."""
    more = [f"and {len(found) - LISTED_PROBLEMS:,} more"] if len(found) > LISTED_PROBLEMS else []
    return "\n".join(f"- {one}" for one in [*found[:LISTED_PROBLEMS], *more])


def require_sound_splits(delta_tables: DeltaTables) -> None:
    """Raises UnsoundSplits, with the remedy, if splits leak, or if fewer than two labels are in all of them.

    Leaks between splits that folders give are for the user to decide. Others are not looked for again if the asset
    check found none in the same tables.
    """
    assigned = current_assignments(delta_tables)
    problems = []
    checked = has_passed(delta_tables, IMAGE_SPLITS.name, LEAKS_CHECK, LEAKS_READ)
    if not checked and (leaking := given_and_other_leaks(delta_tables, assigned)[1]):
        problems.append(
            f"{len(leaking):,} group(s) of near duplicates are in several splits:\n"
            f"{to_bullets(leaking)}\n"
            f"{LEAKS_REMEDY}"
        )
    missing = missing_labels(assigned)
    if missing and assigned["label"].nunique() - len(missing) < 2:
        problems.append(
            f"{len(missing):,} label(s) have no image in some split, and fewer than two others are left:\n"
            f"{to_bullets(missing)}\n{MISSING_LABELS_REMEDY}"
        )
    if problems:
        raise UnsoundSplits("\n".join(["the splits are not fit for training", *problems]))
