"""Training, validation or test for each labeled image; near duplicates share a split."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.duplicate_groups import Pairs, to_groups, to_pairs, with_equal
from image_assets.data.folder_layout import SPLITS, FolderLayout, is_recorded, one_path_per_folder, read_layout
from image_assets.data.given_splits import GIVEN_COLUMNS, Assign, reassigned, with_given_splits
from image_assets.data.image_files import IMAGE_KEYS, current_files, current_key_batches, current_keys
from image_assets.data.labels import (
    extend_label_indexes,
    given_by_path,
    read_label_indexes,
    read_labels,
    relabel,
)
from image_assets.data.sound_splits import LISTED_PROBLEMS, current_assignments, missing_labels
from image_assets.images.charts import by_label, of_labels, picture_markdown, stacked_bars
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow, rows_with_keys
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.queries import query
from resources.delta.table import Table, file_layout
from resources.delta.unchanged import describe_once
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder

SET_ASIDE = "set_aside"  # in no split
NEW_COLUMNS = [*IMAGE_KEYS, "label", "label_index", "perceptual_hash", "mirrored_hash"]
EXISTING_COLUMNS = [*IMAGE_KEYS, "label", "duplicate_group", "split", "given_split"]
FILL_ORDER = ("training", "test", "validation")
CONFLICT = "belongs together with images in different splits"


def split_rows(delta_tables: DeltaTables, split: str) -> DataFrame:
    """Path, image_id, label and label_index of the split's labeled images whose files are current."""
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


def labels_in_all_splits(delta_tables: DeltaTables) -> list[str]:
    """The labels with current images in every split, ordered by label index; others are left out of training."""
    assigned = current_assignments(delta_tables)
    missing = {found.label for found in missing_labels(assigned)}
    numbered = sorted(set(zip(assigned["label_index"], assigned["label"], strict=True)))
    return [label for _, label in numbered if label not in missing]


def training_labels(delta_tables: DeltaTables) -> list[str]:
    """The labels to train on: those in every split, ordered by label index.

    Raises:
        ValueError: There are fewer than two.
    """
    labels = labels_in_all_splits(delta_tables)
    if len(labels) < 2:
        missing = missing_labels(current_assignments(delta_tables))
        left_out = f" Left out: {'; '.join(map(str, missing[:LISTED_PROBLEMS]))}." if missing else ""
        raise ValueError(
            f"{len(labels)} label(s) to train on ({', '.join(labels) or 'none'}): a classifier needs at least two. "
            "Put photographs into at least two subfolders of the landing folder, one for each label, and at least "
            f"three different ones into each.{left_out}"
        )
    return labels


Assignment = tuple[str, str | None, str | None]  # duplicate_group, split, reason


def splits_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of images in each split, and a chart of them by label."""
    images = delta_tables.read(IMAGE_SPLITS, ["label", "split"]).to_pandas().fillna({"split": SET_ASIDE})
    metadata: dict[str, dg.MetadataValue] = {
        f"images_{split}": dg.MetadataValue.int(int(count)) for split, count in images["split"].value_counts().items()
    }
    counts = by_label(images, "split", (*SPLITS, SET_ASIDE))
    if len(counts):
        picture = stacked_bars(counts, of_labels("images per label, by split", images["label"].nunique()))
        metadata["splits"] = dg.MetadataValue.md(picture_markdown(picture, f"{len(images):,} labeled images"))
    return metadata


class SplitConfig(dg.Config):
    """The shares of the splits, used for new images; existing assignments never change."""

    training: float = Field(default=0.7, gt=0, lt=1, description="Share of images for training.")
    validation: float = Field(default=0.15, gt=0, lt=1, description="Share of images that models are chosen by.")
    test: float = Field(default=0.15, gt=0, lt=1, description="Share of images for evaluation, never trained on.")
    seed: int = Field(default=0, description="Seed of the assignment.")

    @property
    def shares(self) -> dict[str, float]:
        """The splits with their shares, scaled to a sum of one."""
        given = {"training": self.training, "validation": self.validation, "test": self.test}
        return {split: share / sum(given.values()) for split, share in given.items()}


def with_splits(
    new: pd.DataFrame,
    existing: pd.DataFrame,
    pairs: Pairs,
    shares: Mapping[str, float],
    seed: int = 0,
    duplicates: str = "near",
) -> pd.DataFrame:
    """The new images with `duplicate_group`, `split`, `reason` and `duplicates`.

    Only groups with a new image are assigned, each as a whole.

    Args:
        new: One row per image, with NEW_COLUMNS.
        existing: One row per image, as `existing_images` returns them.
        pairs: Which images belong together, numbered through existing and new ones.
        shares: The share of each split.
        seed: Decides between groups of the same size.
        duplicates: What was grouped: near, exact or off.
    """
    recorded = with_equal(existing["duplicate_group"])
    groups = to_groups(len(existing) + len(new), np.concatenate([recorded, pairs], axis=1))
    existing_groups, new_groups = groups[: len(existing)], groups[len(existing) :]
    within = np.isin(existing_groups, new_groups)
    joined = existing[within]
    named = zip(existing_groups[within].tolist(), joined["duplicate_group"], joined["split"], strict=True)
    decided = assign_joining(named)
    names = new["path" if duplicates == "off" else "image_id"]
    images = list(zip(new_groups.tolist(), names, new["label"], strict=True))
    # Deleted images fill no split, so that images that replace them go to the same split.
    current = existing[existing["current"].astype(bool) & existing["split"].notna()]
    joining = [(label, decided[group][1]) for group, _, label in images if group in decided]
    counts = Counter([*zip(current["label"], current["split"], strict=True), *(one for one in joining if one[1])])
    unmatched = to_unmatched_groups((image for image in images if image[0] not in decided), seed)
    decided |= assign_unmatched(unmatched, counts, shares)
    assignments = zip(*(decided[group] for group in new_groups.tolist()), strict=True)
    columns = dict(zip(["duplicate_group", "split", "reason"], map(list, assignments), strict=True))
    return new.assign(**columns, duplicates=duplicates)


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
    """The groups of images (group, name, label), largest first; equal ones in an order that the seed fixes."""
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for group, name, label in images:
        members[group].append((name, label))
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
        empty = [split for split in FILL_ORDER if split in shares and not counts[label, split]]
        split = empty[0] if coming[label] <= len(empty) > 0 else max(lacks, key=lacks.__getitem__)
        coming[label] -= 1
        counts.update({(one, split): images for one, images in group.labels.items()})
        decided[group.number] = (group.name, split, None)
    return decided


def existing_images(delta_tables: DeltaTables) -> pd.DataFrame:
    """The images in image_splits, and whether each is `current`."""
    existing = delta_tables.read(IMAGE_SPLITS, EXISTING_COLUMNS)
    places = pa.array(np.arange(len(existing)))
    found = query(
        "SELECT place FROM existing SEMI JOIN files USING (path, image_id)",
        existing=existing.select(IMAGE_KEYS).append_column("place", places),
        files=current_key_batches(delta_tables),
    )
    current = np.zeros(len(existing), dtype=bool)
    current[found["place"].to_numpy()] = True
    return existing.to_pandas().assign(current=current)


def numbered(images: pd.DataFrame, first: int = 0) -> pd.DataFrame:
    """The images with a `number` each, which stays with them."""
    return images.assign(number=np.arange(first, first + len(images))).reset_index(drop=True)


def assignment(
    delta_tables: DeltaTables, images: pd.DataFrame, new: np.ndarray, config: SplitConfig, rules: DuplicateRules
) -> Assign:
    """How some of the images are assigned, next to others of them: near duplicates get the same split.

    Args:
        delta_tables: The tables.
        images: All images, one row each, with their `number`, counted from 0.
        new: Which of them (n,) are new.
        config: The seed.
        rules: Which images belong together.
    """
    pairs = to_pairs(delta_tables, images.loc[:, IMAGE_KEYS], new, rules)

    def assign(some: pd.DataFrame, existing: pd.DataFrame, shares: Mapping[str, float]) -> pd.DataFrame:
        places = np.full(len(images), -1)
        here = pd.concat([existing["number"], some["number"]])
        places[here.to_numpy()] = np.arange(len(here))
        among = places[pairs]
        return with_splits(some, existing, among[:, (among >= 0).all(axis=0)], shares, config.seed, rules.duplicates)

    return assign


def write_assignments(
    delta_tables: DeltaTables, new: NewRows, config: SplitConfig, layout: FolderLayout, rules: DuplicateRules
) -> list[WrittenFile]:
    """Writes image_splits files for the new images that have a label now."""
    images = new.read(NEW_COLUMNS).to_pandas()
    current = read_labels(delta_tables, layout)
    labels = [current.of(key) for key in zip(images["path"], images["image_id"], strict=True)]
    numbers = extend_label_indexes(filter(None, labels), read_label_indexes(delta_tables))
    images = images.assign(label=labels, label_index=[numbers[label] if label else None for label in labels])
    images = images[images["label"].notna()].sort_values(IMAGE_KEYS, ignore_index=True)
    if not len(images):
        return []
    existing = numbered(existing_images(delta_tables))
    images = numbered(images, len(existing))
    everything = pd.concat([existing, images], ignore_index=True)
    assign = assignment(delta_tables, everything, np.arange(len(everything)) >= len(existing), config, rules)
    rows = with_given_splits(images, existing, config.shares, layout, assign)
    rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return list(write_files(rows, delta_tables.uri(IMAGE_SPLITS), file_layout(IMAGE_SPLITS)))


def append_newly_labeled(
    delta_tables: DeltaTables, config: SplitConfig, layout: FolderLayout, rules: DuplicateRules
) -> None:
    """Appends images that had no label when they were followed, and have one now."""
    current = read_labels(delta_tables, layout)
    if not current.are_overridden and is_recorded(delta_tables, IMAGE_SPLITS, layout):
        return
    unassigned = delta_tables.read_keys(FEATURED_IMAGES) - delta_tables.read_keys(IMAGE_SPLITS)
    labeled = [(path, image_id) for path, image_id in unassigned if current.of((str(path), str(image_id)))]
    if labeled:
        new = rows_with_keys(delta_tables, FEATURED_IMAGES, IMAGE_SPLITS, labeled)
        delta_tables.append_files(IMAGE_SPLITS, write_assignments(delta_tables, new, config, layout, rules))


def reassign(delta_tables: DeltaTables, config: SplitConfig, layout: FolderLayout, rules: DuplicateRules) -> int:
    """Gives existing images the splits of a layout that is new; returns how many change."""
    if is_recorded(delta_tables, IMAGE_SPLITS, layout):
        return 0
    existing, current = existing_images(delta_tables), read_labels(delta_tables, layout)
    labels = [current.of(key) for key in zip(existing["path"], existing["image_id"], strict=True)]
    existing = existing.assign(label=labels).loc[[label is not None for label in labels]]
    existing = numbered(existing)
    assign = assignment(delta_tables, existing, np.full(len(existing), True), config, rules)
    changed = reassigned(existing, config.shares, layout, assign)
    if len(changed):
        rows = changed.astype(object).where(changed.notna(), None).to_dict("records")
        delta_tables.update(rows, IMAGE_SPLITS, GIVEN_COLUMNS)
    return len(changed)


def read_splits_layout(delta_tables: DeltaTables, image_folder: ImageFolder) -> FolderLayout:
    """The layout without the splits whose folders have no labels, such as the `test` folder of a competition.

    Corrections do not count: the first one in such a folder would move all other images.
    """
    layout = read_layout(delta_tables, image_folder)
    if not layout.given_splits:
        return layout
    if given := given_by_path(delta_tables):
        labeled = [path for path in current_keys(delta_tables)["path"] if given.get(path)]
    else:
        labeled = [path for path in one_path_per_folder(delta_tables) if layout.label(path)]
    splits = frozenset(split for path in labeled if (split := layout.given_split(path)))
    return replace(layout, given_splits=splits or layout.given_splits)


@dg.asset(
    deps=["featured_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake"},
    pool="image_splits",
)
def image_splits(
    config: SplitConfig, delta_tables: DeltaTables, image_folder: ImageFolder, duplicate_rules: DuplicateRules
) -> dg.MaterializeResult:
    """Training, validation or test for each labeled image, by its folder if that names a split; near duplicates share
    a split.
    """
    layout, rules = read_splits_layout(delta_tables, image_folder), duplicate_rules
    change = follow(
        delta_tables,
        FEATURED_IMAGES,
        IMAGE_SPLITS,
        by=lambda new: write_assignments(delta_tables, new, config, layout, rules),
    )
    append_newly_labeled(delta_tables, config, layout, rules)
    moved = reassign(delta_tables, config, layout, rules)
    relabeled = relabel(delta_tables, IMAGE_SPLITS, layout)  # last: it records the layout
    change = delta_tables.change_since(change.before, IMAGE_SPLITS)
    more = {"moved_to_given_splits": moved} if moved else {}
    more |= {"splits_from_training": ", ".join(layout.missing_splits)} if layout.missing_splits else {}
    described = describe_once(
        delta_tables, IMAGE_SPLITS.name, lambda: splits_metadata(delta_tables), tables=[IMAGE_SPLITS]
    )
    return delta_tables.materialized(IMAGE_SPLITS, change, relabeled=relabeled, **described, **more)
