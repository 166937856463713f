"""Training, validation or test for each labelled image; near duplicates share a split."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import dagster as dg
import pandas as pd
from pydantic import Field

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.data.labels import extend_label_indexes, read_label_indexes, read_label_overrides, relabel
from image_assets.data.split_rows import SPLITS
from image_assets.images.charts import by_label, picture_markdown, stacked_bars
from image_assets.images.near_duplicates import HASHED, group_new_images
from image_assets.schemas import FEATURED_IMAGES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow, rows_with_keys
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.table_layout import file_layout

SET_ASIDE = "set_aside"  # in no split
NEW_COLUMNS = ["path", *HASHED, "label", "label_index"]
EXISTING_COLUMNS = ["path", *HASHED, "label", "duplicate_group", "split"]
FILL_ORDER = ("training", "test", "validation")
CONFLICT = "near duplicate of images in different splits"
Assignment = tuple[str, str | None, str | None]  # duplicate_group, split, reason


def splits_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of images in each split, and a chart of them by label."""
    images = delta_tables.read(IMAGE_SPLITS, ["label", "split"]).to_pandas().fillna({"split": SET_ASIDE})
    metadata: dict[str, dg.MetadataValue] = {
        f"images_{split}": dg.MetadataValue.int(int(count)) for split, count in images["split"].value_counts().items()
    }
    counts = by_label(images, "split", (*SPLITS, SET_ASIDE))
    if len(counts):
        picture = stacked_bars(counts, "images per label, by split")
        metadata["splits"] = dg.MetadataValue.md(picture_markdown(picture, f"{len(images):,} labelled images"))
    return metadata


class SplitConfig(dg.Config):
    """The shares of the splits, used for new images; existing assignments never change."""

    training: float = Field(default=0.7, gt=0, lt=1, description="Share of images for training.")
    validation: float = Field(default=0.15, gt=0, lt=1, description="Share of images that decide the best epoch.")
    test: float = Field(default=0.15, gt=0, lt=1, description="Share of images for evaluation, never trained on.")
    seed: int = Field(default=0, description="Seed of the assignment.")

    @property
    def shares(self) -> dict[str, float]:
        """The splits with their shares, scaled to a sum of one."""
        given = {"training": self.training, "validation": self.validation, "test": self.test}
        return {split: share / sum(given.values()) for split, share in given.items()}


def with_splits(new: pd.DataFrame, existing: pd.DataFrame, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
    """The new images with `duplicate_group`, `split` and `reason`.

    Only groups with a new image are assigned, each as a whole.

    Args:
        new: One row per image, with NEW_COLUMNS.
        existing: One row per image, as `existing_images` returns them.
        shares: The share of each split; they add up to one.
        seed: Decides between groups of the same size.
    """
    existing_groups, new_groups = group_new_images(existing, new)
    joined = existing[existing_groups >= 0]
    named = zip(existing_groups[existing_groups >= 0].tolist(), joined["duplicate_group"], joined["split"], strict=True)
    decided = assign_joining(named)
    images = list(zip(new_groups.tolist(), new["image_id"], new["label"], strict=True))
    # Deleted images fill no split, so that images that replace them go to the same split.
    current = existing[existing["current"].astype(bool) & existing["split"].notna()]
    joining = [(label, decided[group][1]) for group, _, label in images if group in decided]
    counts = Counter([*zip(current["label"], current["split"], strict=True), *(one for one in joining if one[1])])
    unmatched = to_unmatched_groups((image for image in images if image[0] not in decided), seed)
    decided |= assign_unmatched(unmatched, counts, shares)
    assignments = zip(*(decided[group] for group in new_groups.tolist()), strict=True)
    return new.assign(**dict(zip(["duplicate_group", "split", "reason"], map(list, assignments), strict=True)))


def assign_joining(existing: Iterable[tuple[int, str, str | None]]) -> dict[int, Assignment]:
    """Assigns groups with existing images (group, duplicate_group, split) to their split, or to none if they differ."""
    members: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for group, name, split in existing:
        members[group].append((name, split))
    decided = {}
    for group, of_group in members.items():
        splits = {split for _, split in of_group}
        split = splits.pop() if len(splits) == 1 else None
        decided[group] = (min(name for name, _ in of_group), split, None if split else CONFLICT)
    return decided


@dataclass(frozen=True)
class UnmatchedGroup:
    """A group of new images only: its number, its name, and its images by label."""

    number: int
    name: str
    labels: Counter[str]

    @property
    def label(self) -> str:
        """The most frequent label."""
        return min(self.labels, key=lambda label: (-self.labels[label], label))


def to_unmatched_groups(images: Iterable[tuple[int, str, str]], seed: int) -> list[UnmatchedGroup]:
    """The groups of images (group, image_id, label), largest first; equal ones in an order that the seed fixes."""
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for group, image_id, label in images:
        members[group].append((image_id, label))
    groups = [UnmatchedGroup(number, min(of)[0], Counter(label for _, label in of)) for number, of in members.items()]
    return sorted(groups, key=lambda of: (-of.labels.total(), sha256(f"{seed}/{of.name}".encode()).digest()))


def assign_unmatched(
    unmatched: Sequence[UnmatchedGroup], counts: Counter[tuple[str, str | None]], shares: Mapping[str, float]
) -> dict[int, Assignment]:
    """Assigns groups without existing images; `counts` are the existing images by label and split.

    Each group goes to the split that is furthest below its share for the group's label, large groups first. The last
    groups of a label go to splits without an image of it, so that three groups cover all splits. Of two groups, the
    larger one is for training and the other for the test: an untested label would have no metrics, while other labels
    can decide the epoch.
    """
    counts, coming, decided = counts.copy(), Counter(group.label for group in unmatched), {}
    totals: Counter[str] = Counter()
    for (label, _), images in counts.items():
        totals[label] += images
    for group in unmatched:
        totals.update(group.labels)
    for group in unmatched:
        label = group.label
        lacks = {split: share * totals[label] - counts[label, split] for split, share in shares.items()}
        empty = [split for split in FILL_ORDER if not counts[label, split]]
        split = empty[0] if coming[label] <= len(empty) > 0 else max(lacks, key=lacks.__getitem__)
        coming[label] -= 1
        counts.update({(one, split): images for one, images in group.labels.items()})
        decided[group.number] = (group.name, split, None)
    return decided


def existing_images(delta_tables: DeltaTables) -> pd.DataFrame:
    """The images in image_splits, and whether each is `current`."""
    existing = delta_tables.read(IMAGE_SPLITS, EXISTING_COLUMNS).to_pandas()
    there = existing.merge(current_keys(delta_tables), on=IMAGE_KEYS, how="left", indicator="current")
    return there.assign(current=there["current"] == "both")


def write_assignments(delta_tables: DeltaTables, new: NewRows, config: SplitConfig) -> list[WrittenFile]:
    """Writes image_splits files for the new images that have a label now."""
    images = new.read(NEW_COLUMNS).to_pandas()
    overrides = read_label_overrides(delta_tables)
    keys = zip(images["path"], images["image_id"], strict=True)
    labels = [overrides.of(key, label) for key, label in zip(keys, images["label"], strict=True)]
    numbers = extend_label_indexes(filter(None, labels), read_label_indexes(delta_tables))
    images = images.assign(label=labels, label_index=[numbers[label] if label else None for label in labels])
    images = images[images["label"].notna()].sort_values(IMAGE_KEYS, ignore_index=True)
    if not len(images):
        return []
    rows = with_splits(images, existing_images(delta_tables), config.shares, config.seed)
    rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return list(write_files(rows, delta_tables.uri(IMAGE_SPLITS), file_layout(IMAGE_SPLITS)))


def append_newly_labelled(delta_tables: DeltaTables, config: SplitConfig) -> None:
    """Appends images that had no label when they were followed, and have one now."""
    overrides = read_label_overrides(delta_tables)
    unassigned = delta_tables.read_keys(FEATURED_IMAGES) - delta_tables.read_keys(IMAGE_SPLITS) if overrides else ()
    labelled = [(path, image_id) for path, image_id in unassigned if overrides.of((str(path), str(image_id)), None)]
    if labelled:
        new = rows_with_keys(delta_tables, FEATURED_IMAGES, IMAGE_SPLITS, labelled)
        delta_tables.append_files(IMAGE_SPLITS, write_assignments(delta_tables, new, config))


@dg.asset(
    deps=["featured_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake"},
    pool="image_splits",
)
def image_splits(config: SplitConfig, delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Training, validation or test for each labelled image; near duplicates share a split."""
    change = follow(
        delta_tables, FEATURED_IMAGES, IMAGE_SPLITS, by=lambda new: write_assignments(delta_tables, new, config)
    )
    append_newly_labelled(delta_tables, config)
    relabelled = relabel(delta_tables, IMAGE_SPLITS)
    change = delta_tables.change_since(change.before, IMAGE_SPLITS)
    return delta_tables.materialized(IMAGE_SPLITS, change, relabelled=relabelled, **splits_metadata(delta_tables))
