"""Honest probabilities: one temperature for all labels, and thresholds below which a version does not answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CALIBRATION_BINS = 15
LOWEST, HIGHEST = -4.0, 8.0  # bounds of the logarithm of a scale: outputs of a ridge head need one of about 10


def fit_scale(outputs: np.ndarray, label_indexes: np.ndarray) -> float:
    """The factor of all outputs that makes the softmax of these images most probable: 1 over the temperature.

    Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2. Labels keep their order, so accuracy stays
    the same. If every image is classified correctly, the best factor is infinite: as if one further image had equal
    probabilities for all labels and half a label right, the factor stays finite.

    Args:
        outputs: Of images that the network was not trained on: (n, labels), before the softmax.
        label_indexes: Their labels (n,).
    """
    from scipy.optimize import minimize_scalar

    def loss(logarithm: float) -> float:
        scale = float(np.exp(logarithm))
        return log_loss(outputs * scale, label_indexes, smoothing=1 / (len(label_indexes) + 1))

    found = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded")
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue] - its stubs return object


def log_loss(logits: np.ndarray, label_indexes: np.ndarray, smoothing: float = 0.0) -> float:
    """The mean negative log-likelihood of the labels; `smoothing` is the probability that a label is any other one."""
    highest = logits.max(axis=1, keepdims=True)
    logs = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    right = logs[np.arange(len(logs)), label_indexes]
    return float(-((1 - smoothing) * right + smoothing * logs.mean(axis=1)).mean())


def expected_calibration_error(probabilities: np.ndarray, label_indexes: np.ndarray) -> float:
    """The mean distance between the probability of the answers and the share of them that is right.

    Guo et al., section 2: over CALIBRATION_BINS bins of equal width, weighted by their images.

    Args:
        probabilities: Of every label, (n, labels).
        label_indexes: The images' labels (n,).
    """
    sureness, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == label_indexes
    bins = np.minimum((sureness * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(bins, right - sureness)).sum() / len(sureness))


@dataclass(frozen=True)
class Thresholds:
    """From which probability on each label is answered with the requested precision, and how often that happens."""

    by_label: list[float | None]  # None: the precision is not reached at any probability
    coverage: float  # share of the images that get an answer


def choose_thresholds(probabilities: np.ndarray, label_indexes: np.ndarray, precision: float) -> Thresholds:
    """For each label, the lowest probability from which on the answers are right as often as requested.

    Args:
        probabilities: Of images that the network was not trained on: (n, labels).
        label_indexes: Their labels (n,).
        precision: The share of answers that must be right, from 0 to 1.
    """
    answers, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    thresholds = [
        lowest_with(precision, sureness[answers == label], label_indexes[answers == label] == label)
        for label in range(probabilities.shape[1])
    ]
    return Thresholds(thresholds, coverage(answers, sureness, thresholds))


def lowest_with(precision: float, sureness: np.ndarray, right: np.ndarray) -> float | None:
    """The lowest probability from which on the share of right answers is at least `precision`; None if none is."""
    order = np.argsort(-sureness, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(shares >= precision)
    return float(sureness[order][reached[-1]]) if len(reached) else None


def coverage(answers: np.ndarray, sureness: np.ndarray, thresholds: Sequence[float | None]) -> float:
    """The share of images whose answer is as sure as its label's threshold."""
    needed = np.array([np.inf if of is None else of for of in thresholds])
    return float((sureness >= needed[answers]).mean()) if len(answers) else 0.0
