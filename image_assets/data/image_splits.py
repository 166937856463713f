"""Which images are for training, for validation and for the test, near duplicates together."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from hashlib import sha256

import dagster as dg
import pandas as pd
from pydantic import Field

from image_assets.data.near_duplicates import to_new_groups
from image_assets.schemas import FEATURED_IMAGES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables
from resources.new_rows import NewRows
from resources.parquet_files import WrittenFile, write_files
from resources.parquet_layout import file_layout

THIN = ["path", "image_id", "label", "label_index", "perceptual_hash"]
KNOWN = ["label", "perceptual_hash", "duplicate_group", "split"]
CONFLICT = "near duplicate of images in different splits"

Assignment = tuple[str, str | None, str | None]  # duplicate_group, split, reason


class SplitConfig(dg.Config):
    """The shares of the splits; an assignment once made stays, whatever the shares become."""

    training: float = Field(default=0.7, gt=0, lt=1, description="Share of the images to train on.")
    validation: float = Field(default=0.15, gt=0, lt=1, description="Share to choose the best epoch by.")
    test: float = Field(default=0.15, gt=0, lt=1, description="Share for the figures, never trained on.")
    seed: int = Field(default=0, description="Fixes who goes where.")

    @property
    def shares(self) -> dict[str, float]:
        """The splits with their shares, scaled to a sum of one."""
        given = {"training": self.training, "validation": self.validation, "test": self.test}
        return {split: share / sum(given.values()) for split, share in given.items()}


def with_splits(new: pd.DataFrame, known: pd.DataFrame, shares: dict[str, float], seed: int) -> pd.DataFrame:
    """The new images with `duplicate_group`, `split` and `reason`.

    Both frames hold a row for each image: `known` with the columns KNOWN of image_splits, `new` with all but the last
    three. Only groups that hold a new image are decided, each as a whole.
    """
    known_groups, new_groups = to_new_groups(known["perceptual_hash"].tolist(), new["perceptual_hash"].tolist())
    joined = known[known_groups >= 0]
    named = zip(known_groups[known_groups >= 0].tolist(), joined["duplicate_group"], joined["split"], strict=True)
    decided = joined_groups(named)
    fresh = [
        image
        for image in zip(new_groups.tolist(), new["image_id"], new["label"], strict=True)
        if image[0] not in decided
    ]
    counts = Counter(known[["label", "split"]].dropna().itertuples(index=False, name=None))
    decided |= fresh_groups(fresh, counts, shares, seed)
    answers = zip(*(decided[group] for group in new_groups.tolist()), strict=True)
    return new.assign(**dict(zip(["duplicate_group", "split", "reason"], map(list, answers), strict=True)))


def joined_groups(known: Iterable[tuple[int, str, str | None]]) -> dict[int, Assignment]:
    """What becomes of images that join known ones (group, duplicate_group, split): their split, or none of several."""
    members: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for group, name, split in known:
        members[group].append((name, split))
    decided = {}
    for group, of_group in members.items():
        splits = {split for _, split in of_group}
        split = splits.pop() if len(splits) == 1 else None
        decided[group] = (min(name for name, _ in of_group), split, None if split else CONFLICT)
    return decided


def fresh_groups(
    images: Iterable[tuple[int, str, str]], counts: Counter[tuple[str, str]], shares: dict[str, float], seed: int
) -> dict[int, Assignment]:
    """What becomes of images that join none (group, image_id, label); `counts` are the known ones by label and split.

    A group goes to the split that its most frequent label lacks most; the order of the groups is shuffled by the seed
    and each group's own id, so that it does not depend on who arrived together.
    """
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for group, image_id, label in images:
        members[group].append((image_id, label))
    named = [(min(of_group)[0], group, Counter(label for _, label in of_group)) for group, of_group in members.items()]
    counts, decided = counts.copy(), {}
    for name, group, labels in sorted(named, key=lambda each: sha256(f"{seed}/{each[0]}".encode()).digest()):
        label = min(labels, key=lambda one: (-labels[one], one))
        total = sum(counts[label, split] for split in shares) + labels.total()
        split = max(shares, key=lambda option: shares[option] * total - counts[label, option])
        counts[label, split] += labels.total()
        decided[group] = (name, split, None)
    return decided


@dg.asset(deps=["featured_images"], kinds={"pyspark", "deltalake"}, pool="image_splits")
def image_splits(config: SplitConfig, delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Training, validation or test for each labelled image; near duplicates always share a split."""

    def assigned(new: NewRows) -> list[WrittenFile]:
        images = new.read(THIN).to_pandas()
        images = images[images["label"].notna()].sort_values(["path", "image_id"], ignore_index=True)
        if not len(images):
            return []
        known = delta_tables.thin.read(IMAGE_SPLITS, KNOWN).to_pandas()
        rows = with_splits(images, known, config.shares, config.seed)
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return list(write_files(rows, delta_tables.uri(IMAGE_SPLITS), file_layout(IMAGE_SPLITS)))

    change = delta_tables.follow_by_tasks(FEATURED_IMAGES, IMAGE_SPLITS, by=assigned)
    splits = Counter(delta_tables.thin.read(IMAGE_SPLITS, ["split"])["split"].to_pylist())
    images = {f"images_{split or 'set_aside'}": count for split, count in splits.most_common()}
    return delta_tables.materialized(IMAGE_SPLITS, change, **images)
