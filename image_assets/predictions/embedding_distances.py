"""How far the images of a day are from the training images, by their embeddings."""

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.models.isolated_scoring import IMAGE_SECONDS, LOADING_SECONDS, MEMORY_BYTES
from image_assets.models.lineage import EMBEDDING_BACKBONE
from image_assets.models.stored_embeddings import stored_embeddings
from image_assets.predictions.version_embeddings import EmbeddingRequest, embed_images
from image_assets.schemas import IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import DamagedVersion, ModelRegistry, ModelVersion


def sample(images: pd.DataFrame, max_images: int) -> pd.DataFrame:
    """A reproducible sample of images: the first by hash, which is as good as random."""
    return images.sort_values(IMAGE_KEYS[::-1]).head(max_images)


def embedding_distances(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, images: pd.DataFrame, max_images: int
) -> dict[date, float | None] | ItemFailure:
    """The distance between each day's images and the training split, on a sample of both.

    The embeddings are those in `image_embeddings`, or if it lacks any of a version's own network.

    Args:
        images: path, image_id and day of the images.
        max_images: The sample size per day, and for the training split.

    Returns:
        The maximum mean discrepancy by day (None for fewer than two images), or why the version gave no embeddings.
    """
    try:
        registry.require_files_as_logged(version)
    except DamagedVersion as error:
        return ItemFailure("not_loaded", str(error))
    there = current_keys(delta_tables)
    split = delta_tables.read(IMAGE_SPLITS, IMAGE_KEYS, pc.field("split") == "training").to_pandas()
    samples: dict[Any, pd.DataFrame] = {"training": sample(split.merge(there, on=IMAGE_KEYS), max_images)}
    samples |= {day: sample(of_day, max_images) for day, of_day in images.merge(there, on=IMAGE_KEYS).groupby("day")}
    found = stored_samples(delta_tables, version, samples)
    if found is None:
        found = embedded_samples(registry, version, samples)
    if isinstance(found, ItemFailure):
        return found
    training = found.pop("training")
    return {day: discrepancy(of_day, training) for day, of_day in found.items()}


def stored_samples(
    delta_tables: DeltaTables, version: ModelVersion, samples: Mapping[Any, pd.DataFrame]
) -> dict[Any, np.ndarray] | None:
    """The stored embeddings of each sample; None if any of the images has none by the version's backbone."""
    backbone = version.tags.get(EMBEDDING_BACKBONE)
    if not backbone:
        return None
    wanted = {image_id for images in samples.values() for image_id in images["image_id"]}
    ids, embeddings = stored_embeddings(delta_tables, backbone, wanted)
    rows = {image_id: number for number, image_id in enumerate(ids)}
    if not rows.keys() >= wanted:
        return None
    return {name: embeddings[[rows[image_id] for image_id in of["image_id"]]] for name, of in samples.items()}


def embedded_samples(
    registry: ModelRegistry, version: ModelVersion, samples: Mapping[Any, pd.DataFrame]
) -> dict[Any, np.ndarray] | ItemFailure:
    """The embeddings of each sample by the version's network, or why it gave none."""
    found: dict[Any, np.ndarray] = {}
    with GuardedProcess(embed_images, memory_bytes=MEMORY_BYTES["cpu"], name="model", temporary_files=True) as guarded:
        for name, images in samples.items():
            request = EmbeddingRequest(registry.tracking_uri, version.uri, tuple(images["path"]))
            seconds = LOADING_SECONDS + IMAGE_SECONDS * len(images)
            result = guarded.run(request, cpu_seconds=math.inf, wall_seconds=seconds)
            if isinstance(result, ItemFailure):
                return result
            found[name] = result
    return found


def discrepancy(these: np.ndarray, others: np.ndarray) -> float | None:
    """The maximum mean discrepancy of two sets of embeddings (n, features); None if one has fewer than two.

    The unbiased estimate, so that small sets from the same distribution differ from 0 only by chance (Gretton et al.
    2012, "A kernel two-sample test"), with a Gaussian kernel as wide as the median distance. Rabanser et al. 2019
    ("Failing loudly") found that it detects shifts of image data.
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
