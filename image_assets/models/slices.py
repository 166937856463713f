"""Slices: the images of a split that share a trait, to see where a version is worse than its accuracy says."""

from dataclasses import dataclass

import pandas as pd

from image_assets.models.evaluation import KEYS, interval

TRAITS = ("width", "height", "format", "folder")
LEAST_IMAGES = 10
LISTED = 10


@dataclass(frozen=True)
class Slice:
    """How good a version is on the images that share a trait."""

    by: str
    value: str
    images: int
    accuracy: float
    low: float
    high: float


def with_traits(answers: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """The answers with what slices are cut by, from the images' features: classes of size, the format, the folder."""
    images = answers.merge(features[[*KEYS, "width", "height", "format"]], on=KEYS, how="left")
    return images.assign(
        width=images["width"].map(size_class, na_action="ignore"),
        height=images["height"].map(size_class, na_action="ignore"),
        folder=images["path"].str.rpartition("/")[0],
    )


def size_class(pixels: float) -> str:
    """From a power of two to the next one, such as `256 to 511 pixels`."""
    low = 1 << max(int(pixels).bit_length() - 1, 0)
    return f"{low} to {2 * low - 1} pixels"


def worst_slices(answers: pd.DataFrame) -> list[Slice]:
    """The slices on which a version is worst, the worst first, from its judged answers with their traits.

    They are ranked by the upper end of their interval: how good the version may still be on them. By accuracy the
    smallest ones would come first, as among many slices some are bad by chance. Slices of fewer than ten images are
    left out, and so are traits that all images share. (Slices as a way to look at a model: Chung et al. 2019, "Slice
    Finder: automated data slicing for model validation".)
    """
    found = [
        Slice(by, str(value), int(images), right / images, *interval(int(right), int(images)))
        for by in TRAITS
        if answers[by].nunique() > 1
        for value, images, right in answers.groupby(by)["right"].agg(["size", "sum"]).itertuples()
        if images >= LEAST_IMAGES
    ]
    return sorted(found, key=lambda one: (one.high, one.by, one.value))[:LISTED]
