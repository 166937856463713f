"""Which images are for training, for validation and for the test, near duplicates together."""

from collections import Counter
from hashlib import sha256

import dagster as dg
import pandas as pd
from pydantic import Field
from pyspark.sql import DataFrame

from image_assets.data.near_duplicates import to_new_groups
from image_assets.schemas import FEATURED_IMAGES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables

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
    known_groups, new_groups = to_new_groups(known["perceptual_hash"], new["perceptual_hash"])
    joined = known.assign(group=known_groups)[known_groups >= 0]
    fresh = new.assign(group=new_groups)
    decided = joined_groups(joined)
    counts = Counter(known.groupby(["label", "split"]).size().to_dict())
    decided |= fresh_groups(fresh[~fresh["group"].isin(decided)], counts, shares, seed)
    columns = ["duplicate_group", "split", "reason"]
    return new.assign(**dict(zip(columns, zip(*(decided[group] for group in new_groups), strict=True), strict=True)))


def joined_groups(known: pd.DataFrame) -> dict[int, Assignment]:
    """What becomes of images that join known ones, by `group`: their split, or none where they differ."""
    decided = {}
    for group, members in known.groupby("group"):
        splits = set(members["split"])
        split = splits.pop() if len(splits) == 1 else None
        decided[group] = (members["duplicate_group"].min(), split, None if split else CONFLICT)
    return decided


def fresh_groups(
    images: pd.DataFrame, counts: Counter[tuple[str, str]], shares: dict[str, float], seed: int
) -> dict[int, Assignment]:
    """What becomes of images that join none, by `group`; `counts` are the known images by label and split.

    A group goes to the split that its most frequent label lacks most; the order of the groups is shuffled by the seed
    and each group's own id, so that it does not depend on who arrived together.
    """
    by_label = images.groupby(["group", "label"], as_index=False).agg(images=("path", "size"))
    labels = by_label.sort_values(["images", "label"], ascending=[False, True]).drop_duplicates("group")
    # The first in order, not the lowest: pandas looks for the lowest text group by group, in Python.
    in_order = images.sort_values("image_id")
    groups = in_order.groupby("group").agg(name=("image_id", "first"), images=("path", "size"))
    groups["label"] = labels.set_index("group")["label"]
    counts, decided = counts.copy(), {}
    for row in sorted(groups.itertuples(), key=lambda group: sha256(f"{seed}/{group.name}".encode()).digest()):
        total = sum(counts[row.label, split] for split in shares) + row.images
        split = max(shares, key=lambda option: shares[option] * total - counts[row.label, option])
        counts[row.label, split] += row.images
        decided[row.Index] = (row.name, split, None)
    return decided


@dg.asset(deps=["featured_images"], kinds={"pyspark", "deltalake"}, pool="image_splits")
def image_splits(config: SplitConfig, delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Training, validation or test for each labelled image; near duplicates always share a split."""

    def assigned(images: DataFrame) -> DataFrame:
        new = images.where("label IS NOT NULL").orderBy("path", "image_id").toPandas()
        if not len(new):
            return delta_tables.read(IMAGE_SPLITS).limit(0)
        known = delta_tables.read(IMAGE_SPLITS).select(KNOWN).toPandas()
        rows = with_splits(new, known, config.shares, config.seed)
        return delta_tables.spark.createDataFrame(rows.astype(object).where(rows.notna(), None), IMAGE_SPLITS.columns)

    change = delta_tables.follow(FEATURED_IMAGES, THIN, IMAGE_SPLITS, by=assigned)
    splits = delta_tables.read(IMAGE_SPLITS).groupBy("split").count().collect()
    return delta_tables.materialized(
        IMAGE_SPLITS, change, **{f"images_{row['split'] or 'set_aside'}": row["count"] for row in splits}
    )
