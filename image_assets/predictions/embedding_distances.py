"""How far the images of a day are from those that a version was trained on, as its network sees them."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.current_files import KEYS, current_keys
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.schemas import IMAGE_SPLITS
from image_assets.version_embeddings import ImagesToEmbed, embeddings
from resources.model_registry import ModelRegistry, ModelVersion
from resources.thin_tables import ThinTables

MEMORY_BYTES = 64 * 1024**3  # of address space, most of which libraries reserve and never touch
LOADING_SECONDS, IMAGE_SECONDS = 300.0, 30.0
EMBEDDED_DAYS = 7  # at most, in one materialization


def days_to_embed(days: Iterable[date], known: pd.DataFrame, now: datetime) -> list[date]:
    """The last days that are over, of which more images cannot come, and that were not measured since."""
    tried = {row["day"] for row in known.to_dict("records") if row["measured_at"].date() > row["day"]}
    return [day for day in sorted(day for day in days if day < now.date())[-EMBEDDED_DAYS:] if day not in tried]


def sample(images: pd.DataFrame, most: int) -> tuple[str, ...]:
    """The paths of some images, the same of the same: in the order of their hashes, which is none."""
    return tuple(images.sort_values(KEYS[::-1])["path"].head(most))


def embedding_distances(
    thin_tables: ThinTables, registry: ModelRegistry, version: ModelVersion, images: pd.DataFrame, most: int
) -> dict[date, float | None] | Failure:
    """Of each day of the images (path, image_id, day) the distance of some of them from some of the training split."""
    there = current_keys(thin_tables)
    split = thin_tables.read(IMAGE_SPLITS, KEYS, pc.field("split") == "training").to_pandas()
    samples: dict[Any, tuple[str, ...]] = {"training": sample(split.merge(there, on=KEYS), most)}
    samples |= {day: sample(of_day, most) for day, of_day in images.merge(there, on=KEYS).groupby("day")}
    found: dict[Any, np.ndarray] = {}
    with GuardedProcess(embeddings, memory_bytes=MEMORY_BYTES, name="model") as guarded:
        for name, paths in samples.items():
            asked = ImagesToEmbed(registry.tracking_uri, version.uri, paths)
            said = guarded.answer(asked, seconds=LOADING_SECONDS + IMAGE_SECONDS * len(paths))
            if isinstance(said, Failure):
                return said
            found[name] = said
    training = found.pop("training")
    return {day: discrepancy(of_day, training) for day, of_day in found.items()}


def discrepancy(these: np.ndarray, others: np.ndarray) -> float | None:
    """How far two sets of embeddings (n, features) are apart; None where one has fewer than two.

    The maximum mean discrepancy, unbiased, so that small sets of the same kind are 0 apart but for chance (Gretton et
    al. 2012, "A kernel two-sample test"), with a Gaussian kernel as wide as the median distance. Rabanser et al. 2019
    ("Failing loudly") found it to tell shifts of images.
    """
    from scipy.spatial.distance import cdist

    first, second = len(these), len(others)
    if min(first, second) < 2:
        return None
    both = np.concatenate([these, others]).astype(np.float64)
    squares = cdist(both, both, "sqeuclidean")
    kernel = np.exp(-squares / (np.median(squares[np.triu_indices_from(squares, 1)]) or 1.0))
    np.fill_diagonal(kernel, 0)
    within = kernel[:first, :first].sum() / (first * (first - 1)) + kernel[first:, first:].sum() / (
        second * (second - 1)
    )
    return float(np.sqrt(max(within - 2 * kernel[:first, first:].mean(), 0.0)))
