"""Which images are for training, for validation and for the test, near duplicates together."""

from collections import Counter, defaultdict
from hashlib import sha256

import dagster as dg
import pandas as pd
from pydantic import Field
from pyspark.sql import DataFrame

from image_assets.data.near_duplicates import to_groups, to_numbers
from image_assets.schemas import FEATURED_IMAGES, IMAGE_SPLITS
from resources.delta_tables import DeltaTables

THIN = ["path", "image_id", "label", "label_index", "perceptual_hash"]
CONFLICT = "near duplicate of images in different splits"


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

    Both frames hold a row for each image with the columns of image_splits, `new` without the last three.
    A group is assigned as a whole, to the split that its label lacks most; the order of the groups is
    shuffled by the seed and each group's own id, so that it does not depend on who arrived together.
    """
    images = pd.concat([known, new], ignore_index=True)
    images["component"] = to_groups(to_numbers(images["perceptual_hash"].tolist()))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for label, split in known[["label", "split"]].dropna().itertuples(index=False):
        counts[label][split] += 1
    fresh = images.iloc[len(known) :]
    joined = images.iloc[: len(known)].groupby("component")
    decided = {}
    for component, members in joined:
        splits = set(members["split"])
        split = splits.pop() if len(splits) == 1 else None
        decided[component] = (members["duplicate_group"].min(), split, None if split else CONFLICT)
    groups = fresh[~fresh["component"].isin(decided.keys())].groupby("component")
    named = sorted(
        ((members["image_id"].min(), component, members) for component, members in groups),
        key=lambda group: sha256(f"{seed}/{group[0]}".encode()).digest(),
    )
    for name, component, members in named:
        label = members["label"].mode()[0]
        total = counts[label].total() + len(members)
        split = max(shares, key=lambda option: shares[option] * total - counts[label][option])
        counts[label][split] += len(members)
        decided[component] = (name, split, None)
    answers = [decided[component] for component in fresh["component"]]
    return new.assign(
        **{
            column: [answer[place] for answer in answers]
            for place, column in enumerate(["duplicate_group", "split", "reason"])
        }
    )


@dg.asset(deps=["featured_images"], kinds={"pyspark", "deltalake"}, pool="image_splits")
def image_splits(config: SplitConfig, delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Training, validation or test for each labelled image; near duplicates always share a split."""

    def assigned(images: DataFrame) -> DataFrame:
        new = images.where("label IS NOT NULL").orderBy("path", "image_id").toPandas()
        known = delta_tables.read(IMAGE_SPLITS).toPandas()
        rows = with_splits(new, known, config.shares, config.seed) if len(new) else known.iloc[:0]
        return delta_tables.spark.createDataFrame(rows.astype(object).where(rows.notna(), None), IMAGE_SPLITS.columns)

    change = delta_tables.follow(FEATURED_IMAGES, THIN, IMAGE_SPLITS, by=assigned)
    splits = delta_tables.read(IMAGE_SPLITS).groupBy("split").count().collect()
    return delta_tables.materialized(
        IMAGE_SPLITS, change, **{f"images_{row['split'] or 'set_aside'}": row["count"] for row in splits}
    )
