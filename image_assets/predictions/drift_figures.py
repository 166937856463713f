"""Daily metrics of a version's predictions, and the detection of jumps in them."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.models.isolated_scoring import IMAGE_SECONDS, LOADING_SECONDS, MEMORY_BYTES
from image_assets.predictions.version_embeddings import EmbeddingRequest, embed_images
from image_assets.schemas import IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

EMBEDDED_DAYS = 7  # per materialization, at most
MIN_DAYS, MIN_IMAGES_PER_DAY = 5, 20  # days to compare with, and images in each of them
MIN_JUMP = 0.05  # of metrics between 0 and 1; smaller changes are not worth a warning
DEVIATIONS = 3.0


def days_to_embed(days: Iterable[date], measured: pd.DataFrame, now: datetime) -> list[date]:
    """The last days that are over, so that no more images can arrive, and that were not measured since."""
    tried = {row["day"] for row in measured.to_dict("records") if row["measured_at"].date() > row["day"]}
    return [day for day in sorted(day for day in days if day < now.date())[-EMBEDDED_DAYS:] if day not in tried]


def sample(images: pd.DataFrame, max_images: int) -> tuple[str, ...]:
    """The paths of a reproducible sample of images: the first by hash, which is as good as random."""
    return tuple(images.sort_values(IMAGE_KEYS[::-1])["path"].head(max_images))


def embedding_distances(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, images: pd.DataFrame, max_images: int
) -> dict[date, float | None] | ItemFailure:
    """The distance between each day's images and the training split, on a sample of both.

    Args:
        images: path, image_id and day of the images.
        max_images: The sample size per day, and for the training split.

    Returns:
        The maximum mean discrepancy by day (None for fewer than two images), or why the version gave no embeddings.
    """
    there = current_keys(delta_tables)
    split = delta_tables.read(IMAGE_SPLITS, IMAGE_KEYS, pc.field("split") == "training").to_pandas()
    samples: dict[Any, tuple[str, ...]] = {"training": sample(split.merge(there, on=IMAGE_KEYS), max_images)}
    samples |= {day: sample(of_day, max_images) for day, of_day in images.merge(there, on=IMAGE_KEYS).groupby("day")}
    found: dict[Any, np.ndarray] = {}
    with GuardedProcess(embed_images, memory_bytes=MEMORY_BYTES["cpu"], name="model") as guarded:
        for name, paths in samples.items():
            request = EmbeddingRequest(registry.tracking_uri, version.uri, paths)
            result = guarded.run(request, seconds=LOADING_SECONDS + IMAGE_SECONDS * len(paths))
            if isinstance(result, ItemFailure):
                return result
            found[name] = result
    training = found.pop("training")
    return {day: discrepancy(of_day, training) for day, of_day in found.items()}


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


FIGURES = {
    "mean_probability": "mean probability",
    "unsure_share": "share of unsure predictions",
    "answer_distance": "distance of the predictions from those on the test split",
    "embedding_distance": "distance of the images from the training images",
}


def arrival_days(images: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """The day each image (path, image_id, predicted_at by any version) arrived.

    For the first image of a file this is the day the file was first seen (`first_seen`). For an image that replaced
    another one under the same name, it is the day of its first prediction.
    """
    first = images.groupby(IMAGE_KEYS, as_index=False)["predicted_at"].min().merge(files, on="path")
    replaced = first.groupby("path")["predicted_at"].rank(method="first") > 1
    arrived = first["first_seen"].where(~replaced, first["predicted_at"])
    return first[IMAGE_KEYS].assign(day=pd.to_datetime(arrived, utc=True).dt.date)


def figures_by_day(
    answers: pd.DataFrame, reference: pd.DataFrame, labels: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """Metrics of each day's predictions (day, label, probability, probabilities), as columns of prediction_drift."""
    return [
        {"day": day, **figures(of_day, reference, labels, threshold)}
        for day, of_day in answers.groupby("day", sort=True)
    ]


def figures(answers: pd.DataFrame, reference: pd.DataFrame, labels: Sequence[str], threshold: float) -> dict[str, Any]:
    """Metrics of one day's predictions; None where there are no predictions."""
    given = answers.loc[answers["label"].notna()]
    all_labels = [*labels, *sorted(set(given["label"]) - set(labels))]
    probability = given["probability"].to_numpy(np.float64)
    some = len(given) > 0
    return {
        "images": len(answers),
        "answered": len(given),
        "labels": all_labels,
        "label_shares": [float((given["label"] == label).mean()) for label in all_labels] if some else None,
        "mean_probability": float(probability.mean()) if some else None,
        "threshold": threshold,
        "unsure_share": float((probability < threshold).mean()) if some else None,
        "answer_distance": answer_distance(given, reference),
    }


def answer_distance(these: pd.DataFrame, others: pd.DataFrame) -> float | None:
    """The distance between two sets of predictions by their mean probability of each label; None if one is empty.

    The Jensen-Shannon distance (Endres and Schindelin 2003, "A new metric for probability distributions"): 0 if they
    are equal, 1 if they have no label in common.
    """
    from scipy.special import rel_entr

    given = [answers["probabilities"].dropna().tolist() for answers in (these, others)]
    if not all(given):
        return None
    means = np.stack([np.stack(rows).mean(axis=0) for rows in given])
    divergence = rel_entr(means, means.mean(axis=0)).sum() / 2 / np.log(2)
    return float(np.sqrt(max(divergence, 0.0)))  # rounding can make it negative for equal sets


def shares_by_day(days: pd.DataFrame) -> pd.DataFrame:
    """One column per label with its share on each day; 0 where the day does not have the label."""
    pairs = zip(days["labels"], days["label_shares"], strict=True)
    return pd.DataFrame([dict(zip(*pair, strict=True)) for pair in pairs], index=days.index).fillna(0.0)


def by_figure(days: pd.DataFrame) -> pd.DataFrame:
    """One column per metric and per label, one row per day; all values are between 0 and 1."""
    figures = pd.DataFrame({name: days[column].astype(float) for column, name in FIGURES.items()})
    return pd.concat([shares_by_day(days).add_prefix("share of "), figures], axis="columns")


def jumps(days: pd.DataFrame) -> list[str] | None:
    """Describes the metrics of a version that jumped on its newest day; None if there are too few days to compare.

    A metric jumps if it differs from its mean on the earlier days by more than three standard deviations. The
    deviation is that of the earlier days or, if larger, the sampling error of as few images as the newest day has.
    """
    enough = days.loc[days["answered"] >= MIN_IMAGES_PER_DAY].sort_values("day")
    if len(enough) <= MIN_DAYS:
        return None
    measured = by_figure(enough)
    return [
        sentence
        for name in measured.columns.tolist()
        if (sentence := jump(name, measured.loc[:, name].dropna(), enough))
    ]


def jump(name: str, values: pd.Series, days: pd.DataFrame) -> str | None:
    """Describes the jump of a metric on the newest day; None if it did not jump, or if there are too few days."""
    if len(values) <= MIN_DAYS:
        return None
    before, newest = values.iloc[:-1].to_numpy(np.float64), float(values.iloc[-1])
    newest_day = days.loc[values.index[-1]]
    mean = before.mean()
    chance = mean * (1 - mean) / newest_day["answered"]  # of a share; no metric between 0 and 1 varies more
    expected = np.sqrt(max(before.var(ddof=1), chance) * (1 + 1 / len(before)))
    if abs(newest - mean) <= max(DEVIATIONS * expected, MIN_JUMP):
        return None
    wanted = f"expected {mean:.2f} ± {expected:.2f}, the mean of the {len(before)} days before"
    return f"{name} was {newest:.2f} on {newest_day['day']}: {wanted}"
