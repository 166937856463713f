"""Calibrated probabilities: one temperature for all labels, and thresholds below which a version does not answer."""

import math
from dataclasses import dataclass

import numpy as np

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
    logs = log_softmax(logits)
    right = logs[np.arange(len(logs)), label_indexes]
    return float(-((1 - smoothing) * right + smoothing * logs.mean(axis=1)).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities of outputs (n, labels)."""
    lowered = logits - logits.max(axis=1, keepdims=True)  # so that the exponentials do not overflow
    return lowered - np.log(np.exp(lowered).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Thresholds:
    """From which probability on each label is answered, and what that means for the images it was chosen on."""

    by_label: list[float | None]  # None: the requested precision is not reached at any probability
    coverage: float  # share of the images that get an answer
    precision: float | None  # share of the answers that are right; None without answers


def choose_thresholds(
    probabilities: np.ndarray,
    label_indexes: np.ndarray,
    *,
    precision: float | None = None,
    minimum_probability: float | None = None,
) -> Thresholds:
    """For each label, the lowest probability that is at least the given one and gives the requested precision.

    Selective classification: El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification (2010).

    Args:
        probabilities: Of images that the network was not trained on: (n, labels).
        label_indexes: Their labels (n,).
        precision: The share of each label's answers that must be right, from 0 to 1.
        minimum_probability: The lowest probability of an answer, the same for all labels.
    """
    answers, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = answers == label_indexes
    least = minimum_probability or 0.0
    thresholds: list[float | None] = [least] * probabilities.shape[1]
    if precision is not None:
        for label in range(len(thresholds)):
            of_label = (answers == label) & (confidence >= least)
            lowest = lowest_with(precision, confidence[of_label], right[of_label])
            # Rounded down to six digits: those of thousands of labels have to fit into a tag.
            thresholds[label] = None if lowest is None else max(least, math.floor(1e6 * lowest) / 1e6)
    needed = np.array([np.inf if of is None else of for of in thresholds])
    answered = confidence >= needed[answers]
    return Thresholds(thresholds, float(answered.mean()), float(right[answered].mean()) if answered.any() else None)


def lowest_with(precision: float, confidence: np.ndarray, right: np.ndarray) -> float | None:
    """The lowest probability from which on the share of right answers is at least `precision`; None if none is."""
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Equal probabilities are answered together, so only the share up to the last of them counts.
    last_of_equals = np.append(descending[:-1] > descending[1:], True)[: len(order)]
    reached = np.flatnonzero((shares >= precision) & last_of_equals)
    return float(descending[reached[-1]]) if len(reached) else None
