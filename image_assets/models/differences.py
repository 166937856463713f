"""How far two trainings are apart that should have come to the same: weights, figures, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from image_assets.models.checkpoints import State, digest

KEYS = ["path", "image_id"]
NO_RESULT = {"epoch", "seconds"}  # what a history holds beside figures of the model

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What a training came to: weights by name, figures by epoch, and what the model says of the test split.

    `predictions` has a row for each image: path, image_id, label and probability.
    """

    weights: State
    history: History
    predictions: pd.DataFrame


@dataclass(frozen=True)
class Differences:
    """How far two outcomes are apart; infinite where one lacks what the other has."""

    digests: tuple[str, str]  # SHA-256 of all weights
    weights: dict[str, float]  # the largest absolute difference in each array
    epochs: tuple[int, int]
    figures: tuple[dict[str, float], ...]  # by epoch, the absolute difference of each figure
    images: int  # that both were asked about
    images_of_one: int  # that only one was asked about
    agreeing: float  # share of these images under the same label; not a number when there are none
    probability: float  # the largest difference of probabilities

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        return (
            len(set(self.digests)) == len(set(self.epochs)) == 1
            and not any(difference for epoch in self.figures for difference in epoch.values())
            and (self.images_of_one, self.agreeing, self.probability) == (0, 1, 0)
        )


def to_differences(before: Outcome, after: Outcome) -> Differences:
    """How far the outcomes are apart."""
    images = before.predictions.merge(after.predictions, how="outer", on=KEYS, suffixes=("", "_after"), indicator=True)
    both = images.query("_merge == 'both'").fillna({"label": "", "label_after": ""})
    return Differences(
        digests=(digest(before.weights), digest(after.weights)),
        weights={
            name: largest_difference(before.weights.get(name), after.weights.get(name))
            for name in {**before.weights, **after.weights}
        },
        epochs=(len(before.history), len(after.history)),
        figures=tuple(map(figure_differences, before.history, after.history)),
        images=len(both),
        images_of_one=len(images) - len(both),
        agreeing=float((both["label"] == both["label_after"]).mean()),
        probability=largest_difference(
            both["probability"].to_numpy(np.float64), both["probability_after"].to_numpy(np.float64)
        ),
    )


def largest_difference(before: np.ndarray | None, after: np.ndarray | None) -> float:
    """The largest absolute difference between two arrays; infinite between those that cannot be compared."""
    if before is None or after is None or before.shape != after.shape:
        return inf
    before, after = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        apart = np.where((before == after) | (np.isnan(before) & np.isnan(after)), 0, np.abs(before - after))
    return float(np.nan_to_num(apart, nan=inf, posinf=inf).max(initial=0))


def figure_differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The absolute difference of each figure of an epoch."""
    names = [name for name in {**before, **after} if name not in NO_RESULT]
    return {
        name: largest_difference(*(np.array(epoch[name]) if name in epoch else None for epoch in (before, after)))
        for name in names
    }


def to_markdown(differences: Differences) -> str:
    """The differences as a report to read."""
    names = list(dict.fromkeys(name for epoch in differences.figures for name in epoch))
    epochs = enumerate(differences.figures, 1)
    lines = [
        f"**{'The same' if differences.same else 'Not the same'}** as before.",
        "",
        f"Weights: SHA-256 {' and '.join(dict.fromkeys(differences.digests))}.",
        "",
        "| weights | largest difference |",
        "|---|---|",
        *(f"| {name} | {apart:.3g} |" for name, apart in differences.weights.items()),
        "",
        f"Epochs: {differences.epochs[0]} before, {differences.epochs[1]} now.",
        "",
        f"| epoch | {' | '.join(names)} |",
        f"|---{'|---' * len(names)}|",
        *(f"| {epoch} | {' | '.join(f'{of.get(name, inf):.3g}' for name in names)} |" for epoch, of in epochs),
        "",
        f"Predictions on the test split: {differences.agreeing:.2%} of {differences.images:,} images have the same "
        f"label, probabilities differ by up to {differences.probability:.3g}; "
        f"{differences.images_of_one:,} images were asked about once only.",
    ]
    return "\n".join(lines)
