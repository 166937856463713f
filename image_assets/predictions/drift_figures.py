"""What a version says of the images of each day, in figures, and which of them jumped."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from image_assets.data.image_files import IMAGE_KEYS, current_keys
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.predictions.version_embeddings import EmbeddingRequest, embed_images
from image_assets.schemas import IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

MEMORY_BYTES = 64 * 1024**3  # of address space, most of which libraries reserve and never touch
LOADING_SECONDS, IMAGE_SECONDS = 300.0, 30.0
EMBEDDED_DAYS = 7  # at most, in one materialization


def days_to_embed(days: Iterable[date], measured: pd.DataFrame, now: datetime) -> list[date]:
    """The last days that are over, of which more images cannot come, and that were not measured since."""
    tried = {row["day"] for row in measured.to_dict("records") if row["measured_at"].date() > row["day"]}
    return [day for day in sorted(day for day in days if day < now.date())[-EMBEDDED_DAYS:] if day not in tried]


def sample(images: pd.DataFrame, max_images: int) -> tuple[str, ...]:
    """The paths of some images, the same of the same: in the order of their hashes, which is none."""
    return tuple(images.sort_values(IMAGE_KEYS[::-1])["path"].head(max_images))


def embedding_distances(
    delta_tables: DeltaTables, registry: ModelRegistry, version: ModelVersion, images: pd.DataFrame, max_images: int
) -> dict[date, float | None] | ItemFailure:
    """Of each day of the images (path, image_id, day) the distance of some of them from some of the training split."""
    there = current_keys(delta_tables)
    split = delta_tables.read(IMAGE_SPLITS, IMAGE_KEYS, pc.field("split") == "training").to_pandas()
    samples: dict[Any, tuple[str, ...]] = {"training": sample(split.merge(there, on=IMAGE_KEYS), max_images)}
    samples |= {day: sample(of_day, max_images) for day, of_day in images.merge(there, on=IMAGE_KEYS).groupby("day")}
    found: dict[Any, np.ndarray] = {}
    with GuardedProcess(embed_images, memory_bytes=MEMORY_BYTES, name="model") as guarded:
        for name, paths in samples.items():
            request = EmbeddingRequest(registry.tracking_uri, version.uri, paths)
            result = guarded.run(request, seconds=LOADING_SECONDS + IMAGE_SECONDS * len(paths))
            if isinstance(result, ItemFailure):
                return result
            found[name] = result
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


MIN_DAYS, MIN_IMAGES_PER_DAY = 5, 20  # to compare a day with, and in each of them
MIN_JUMP = 0.05  # of figures that lie between 0 and 1: what is smaller nobody has to look at
DEVIATIONS = 3.0
FIGURES = {
    "mean_probability": "mean probability",
    "unsure_share": "share of unsure answers",
    "answer_distance": "distance of the answers from those to the test split",
    "embedding_distance": "distance of the images from those trained on",
}


def arrival_days(images: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """The images (path, image_id, predicted_at by any version) with the day that each arrived.

    Of a file's first image that is the day its listing found it (`first_seen`); of one that replaced another under the
    same name, the day that a version first predicted it.
    """
    first = images.groupby(IMAGE_KEYS, as_index=False)["predicted_at"].min().merge(files, on="path")
    replaced = first.groupby("path")["predicted_at"].rank(method="first") > 1
    arrived = first["first_seen"].where(~replaced, first["predicted_at"])
    return first[IMAGE_KEYS].assign(day=pd.to_datetime(arrived, utc=True).dt.date)


def figures_by_day(
    answers: pd.DataFrame, reference: pd.DataFrame, labels: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """For each day of the answers (day, label, probability, probabilities) their figures, named as their columns."""
    return [
        {"day": day, **figures(of_day, reference, labels, threshold)}
        for day, of_day in answers.groupby("day", sort=True)
    ]


def figures(answers: pd.DataFrame, reference: pd.DataFrame, labels: Sequence[str], threshold: float) -> dict[str, Any]:
    """The figures of one day's answers; null where nothing was answered."""
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
    """How far two sets of answers are apart, by their mean probabilities of each label; None where one is empty.

    The Jensen-Shannon distance (Endres and Schindelin 2003, "A new metric for probability distributions"): 0 for the
    same, 1 for those that share no label.
    """
    from scipy.special import rel_entr

    given = [answers["probabilities"].dropna().tolist() for answers in (these, others)]
    if not all(given):
        return None
    means = np.stack([np.stack(rows).mean(axis=0) for rows in given])
    divergence = rel_entr(means, means.mean(axis=0)).sum() / 2 / np.log(2)
    return float(np.sqrt(max(divergence, 0.0)))  # of the same answers, rounding may leave less than nothing


def shares_by_day(days: pd.DataFrame) -> pd.DataFrame:
    """The share of each label, in a column of its own; 0 where a day's row does not know the label."""
    pairs = zip(days["labels"], days["label_shares"], strict=True)
    return pd.DataFrame([dict(zip(*pair, strict=True)) for pair in pairs], index=days.index).fillna(0.0)


def by_figure(days: pd.DataFrame) -> pd.DataFrame:
    """The figures of each day in columns of their own, one for each label; all lie between 0 and 1."""
    figures = pd.DataFrame({name: days[column].astype(float) for column, name in FIGURES.items()})
    return pd.concat([shares_by_day(days).add_prefix("share of "), figures], axis="columns")


def jumps(days: pd.DataFrame) -> list[str] | None:
    """What jumped on the newest day of one version, in sentences; None where there is too little to compare it with.

    A figure jumped when it is further from its mean on the days before than three times the deviation to be expected:
    that of the days or, where it is larger, that by chance of as few images as the day's.
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
    """Whether the newest of a figure's values jumped, in a sentence; None where not, or after too few days."""
    if len(values) <= MIN_DAYS:
        return None
    before, newest = values.iloc[:-1].to_numpy(np.float64), float(values.iloc[-1])
    newest_day = days.loc[values.index[-1]]
    mean = before.mean()
    chance = mean * (1 - mean) / newest_day["answered"]  # of a share; no figure between 0 and 1 varies more
    expected = np.sqrt(max(before.var(ddof=1), chance) * (1 + 1 / len(before)))
    if abs(newest - mean) <= max(DEVIATIONS * expected, MIN_JUMP):
        return None
    wanted = f"expected {mean:.2f} ± {expected:.2f}, as on {len(before)} days before"
    return f"{name} was {newest:.2f} on {newest_day['day']}: {wanted}"
