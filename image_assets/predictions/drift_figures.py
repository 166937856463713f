"""What a version says of the images of each day, in figures, and which of them jumped."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

KEYS = ["path", "image_id"]
LEAST_DAYS, LEAST_IMAGES = 5, 20  # to compare a day with, and in each of them
LEAST_JUMP = 0.05  # of figures that lie between 0 and 1: what is smaller nobody has to look at
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
    first = images.groupby(KEYS, as_index=False)["predicted_at"].min().merge(files, on="path")
    replaced = first.groupby("path")["predicted_at"].rank(method="first") > 1
    arrived = first["first_seen"].where(~replaced, first["predicted_at"])
    return first[KEYS].assign(day=pd.to_datetime(arrived, utc=True).dt.date)


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
    known = [*labels, *sorted(set(given["label"]) - set(labels))]
    probability = given["probability"].to_numpy(np.float64)
    some = len(given) > 0
    return {
        "images": len(answers),
        "answered": len(given),
        "labels": known,
        "label_shares": [float((given["label"] == label).mean()) for label in known] if some else None,
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
    enough = days.loc[days["answered"] >= LEAST_IMAGES].sort_values("day")
    if len(enough) <= LEAST_DAYS:
        return None
    measured = by_figure(enough)
    return [said for name in measured.columns.tolist() if (said := jump(name, measured.loc[:, name].dropna(), enough))]


def jump(name: str, values: pd.Series, days: pd.DataFrame) -> str | None:
    """Whether the newest of a figure's values jumped, in a sentence; None where not, or after too few days."""
    if len(values) <= LEAST_DAYS:
        return None
    before, newest = values.iloc[:-1].to_numpy(np.float64), float(values.iloc[-1])
    newest_day = days.loc[values.index[-1]]
    mean = before.mean()
    chance = mean * (1 - mean) / newest_day["answered"]  # of a share; no figure between 0 and 1 varies more
    expected = np.sqrt(max(before.var(ddof=1), chance) * (1 + 1 / len(before)))
    if abs(newest - mean) <= max(DEVIATIONS * expected, LEAST_JUMP):
        return None
    wanted = f"expected {mean:.2f} ± {expected:.2f}, as on {len(before)} days before"
    return f"{name} was {newest:.2f} on {newest_day['day']}: {wanted}"
