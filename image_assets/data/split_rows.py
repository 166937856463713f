"""The current images of a split, and whether the splits are fit for training."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.image_files import IMAGE_KEYS, current_files, current_keys
from image_assets.images.near_duplicates import HASHED, to_groups, to_image_hashes
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table

SPLITS = ("training", "validation", "test")
LISTED_PROBLEMS = 10
LEAK_PATHS = 3  # listed for each split
LEAKS_REMEDY = (
    "keep the files of one split and delete the others from the landing folder, or delete the folder of the table "
    "image_splits to assign every image again"
)
MISSING_LABELS_REMEDY = (
    "add different photographs to the label's folder (three distinct ones cover all splits), or exclude the folder "
    "with IMAGE_ASSETS_EXCLUDE"
)


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
    """The labelled rows of image_splits whose files are current; only these are trained on."""
    columns = ["path", *HASHED, "label", "duplicate_group", "split"]
    assigned = delta_tables.read(IMAGE_SPLITS, columns, pc.field("label").is_valid()).to_pandas()
    return assigned.merge(current_keys(delta_tables), on=IMAGE_KEYS)


def leaks(assigned: pd.DataFrame) -> list[Leak]:
    """The groups in several splits, largest first, by perceptual hash and by the recorded duplicate_group.

    Images that were set aside are in no split, and connect no groups.
    """
    images = assigned.dropna(subset=["split"])
    images = images.assign(hash_group=to_groups(to_image_hashes(images)))
    found: list[Leak] = []
    for by in ("hash_group", "duplicate_group"):
        splits = images.drop_duplicates([by, "split"])
        leaking = images[by].isin(splits.loc[splits[by].duplicated(), by])
        groups: dict[object, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        members = images.loc[leaking].sort_values("path")
        for group, split, path in zip(members[by], members["split"], members["path"], strict=True):
            groups[group][split].append(path)
        found += map(Leak, groups.values())
        images = images.loc[~leaking]
    return sorted(found, key=lambda leak: -leak.files)


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
    """Raises UnsoundSplits, with the remedy, if splits leak or lack a label."""
    assigned = current_assignments(delta_tables)
    problems = []
    if leaking := leaks(assigned):
        problems.append(
            f"{len(leaking):,} group(s) of near duplicates are in several splits:\n"
            f"{to_bullets(leaking)}\n"
            f"{LEAKS_REMEDY}"
        )
    if missing := missing_labels(assigned):
        problems.append(
            f"{len(missing):,} label(s) have no image in some split:\n{to_bullets(missing)}\n{MISSING_LABELS_REMEDY}"
        )
    if problems:
        raise UnsoundSplits("\n".join(["the splits are not fit for training", *problems]))


def split_rows(delta_tables: DeltaTables, split: str) -> DataFrame:
    """Path, image_id, label and label_index of the split's labelled images whose files are current."""
    current = current_files(delta_tables.dataframe(IMAGE_FILES))
    assigned = delta_tables.dataframe(IMAGE_SPLITS).where((F.col("split") == split) & F.col("label").isNotNull())
    return assigned.join(current, on=IMAGE_KEYS, how="left_semi").select("path", "image_id", "label", "label_index")


def with_content(delta_tables: DeltaTables, rows: DataFrame, table: Table = FEATURED_IMAGES) -> DataFrame:
    """The rows with the images' content from a table; rows are broadcast, so that content is not shuffled.

    Images above the content limit are left out, because tables store no content for them.
    """
    content = delta_tables.dataframe(table).select("path", "image_id", "content").where("content IS NOT NULL")
    return content.join(F.broadcast(rows), on=IMAGE_KEYS, how="inner")


def read_split(delta_tables: DeltaTables, split: str) -> pd.DataFrame:
    """The same rows as `split_rows`, read without Spark."""
    columns = [*IMAGE_KEYS, "label", "label_index"]
    assigned = delta_tables.read(
        IMAGE_SPLITS, columns, (pc.field("split") == split) & pc.field("label").is_valid()
    ).to_pandas()
    return assigned.merge(current_keys(delta_tables), on=IMAGE_KEYS)


def split_digest(rows: pd.DataFrame) -> str:
    """A digest of the images and their labels, independent of their order."""
    text = "\n".join(sorted(map(repr, zip(rows["path"], rows["image_id"], rows["label"], strict=True))))
    return f"{len(rows)}-{sha256(text.encode()).hexdigest()[:24]}"


def training_labels(delta_tables: DeltaTables) -> list[str]:
    """The labels of the current images in the training split, ordered by label index.

    Raises:
        ValueError: There are fewer than two.
    """
    rows = read_split(delta_tables, "training")
    labels = [label for _, label in sorted(set(zip(rows["label_index"], rows["label"], strict=True)))]
    if len(labels) < 2:
        raise ValueError(
            f"{len(labels)} label(s) to train on ({', '.join(labels) or 'none'}): a classifier needs at least two. "
            "Put photographs into at least two subfolders of the landing folder, one for each label"
        )
    return labels
