"""The last layer in closed form: ridge regression of the labels on the embeddings, from two sums over the ranks.

Least squares on indicator vectors of the labels (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning,
2009, sections 3.4.1 and 4.2). Nothing is random, there are no epochs, and any number of ranks gives the same head up to
rounding in float64. Leave-one-out cross-validation chooses the strength of the penalty; it takes a second pass over the
images, but no further fits (Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from image_assets.models.epochs import Batch, Collective

# Penalties in units of the mean variance of a direction, so that they suit embeddings of any scale.
STRENGTHS = np.geomspace(1e-4, 10, 21)


@dataclass(frozen=True)
class RidgeHead:
    """A linear head: `embedding @ kernel + bias` is near 1 for an image's label, and near 0 for the others."""

    kernel: np.ndarray  # (features, labels) float64
    bias: np.ndarray  # (labels,) float64
    strength: float  # one of STRENGTHS
    errors: np.ndarray  # (strengths,): the mean squared error of images that the fit left out

    def outputs(self, embeddings: np.ndarray) -> np.ndarray:
        """The outputs (n, labels) float64 for embeddings (n, features)."""
        return embeddings @ self.kernel + self.bias


@dataclass(frozen=True)
class Moments:
    """Weighted sums over the images of all ranks."""

    weight: float
    embeddings: np.ndarray  # (features,)
    targets: np.ndarray  # (labels,)
    squares: np.ndarray  # (features, features): embeddings times embeddings
    products: np.ndarray  # (features, labels): embeddings times targets


class RidgeFit:
    """The fit for every strength at once, in the directions along which the embeddings vary independently."""

    def __init__(self, moments: Moments) -> None:
        self._weight = moments.weight
        self._mean, self._target = moments.embeddings / moments.weight, moments.targets / moments.weight
        covariance = moments.squares - moments.weight * np.outer(self._mean, self._mean)
        variances, self._directions = np.linalg.eigh(covariance)
        variances = np.maximum(variances, 0)  # rounding leaves some slightly negative
        # An untrained backbone may give every image the same embedding.
        penalties = STRENGTHS * (variances.mean() or 1.0)
        self._products = self._directions.T @ (moments.products - moments.weight * np.outer(self._mean, self._target))
        self._shrinkage = 1 / (variances + penalties[:, None])  # (strengths, features)

    def left_out_errors(self, batch: Batch, label_weights: np.ndarray) -> np.ndarray:
        """The weighted sum of squared errors of the batch's images, (strengths,), had each been left out of the fit."""
        weights = label_weights[batch.label_indexes]
        rotated = (batch.inputs - self._mean) @ self._directions
        residuals = np.eye(len(label_weights))[batch.label_indexes] - self._target
        errors = np.empty(len(STRENGTHS))
        for number, shrinkage in enumerate(self._shrinkage):
            shrunk = rotated * shrinkage
            leverages = weights * (1 / self._weight + (shrunk * rotated).sum(axis=1))
            left_out = (residuals - shrunk @ self._products) / np.maximum(1 - leverages, 1e-6)[:, None]
            errors[number] = weights @ (left_out**2).sum(axis=1)
        return errors

    def head(self, errors: np.ndarray) -> RidgeHead:
        """The head with the strength of the smallest error; of equal ones, the strongest."""
        best = len(errors) - 1 - int(errors[::-1].argmin())
        kernel = self._directions @ (self._shrinkage[best][:, None] * self._products)
        return RidgeHead(kernel, self._target - self._mean @ kernel, float(STRENGTHS[best]), errors / self._weight)


def fit_ridge_head(images: Iterable[Batch], label_weights: np.ndarray, collective: Collective) -> RidgeHead:
    """The head for the embeddings of all ranks; every rank gets the same one.

    Args:
        images: This rank's embeddings (n, features), each image once; iterated twice.
        label_weights: The weight of each label's images, (labels,), such as those of `label_weights`.
        collective: The other ranks.
    """
    fit = RidgeFit(sum_moments(images, label_weights, collective))
    errors = sum((fit.left_out_errors(batch, label_weights) for batch in images), np.zeros(len(STRENGTHS)))
    return fit.head(collective.sum(errors))


def sum_moments(images: Iterable[Batch], label_weights: np.ndarray, collective: Collective) -> Moments:
    """The sums over the images of all ranks, in one exchange."""
    labels, total = len(label_weights), np.zeros(())
    for batch in images:
        weights = label_weights[batch.label_indexes]
        targets = np.eye(labels)[batch.label_indexes]
        # A column of ones gives the sums of embeddings and targets by the same multiplication.
        columns = np.concatenate([np.ones((len(weights), 1)), batch.inputs.astype(np.float64), targets], axis=1)
        total = total + (columns * weights[:, None]).T @ columns
    summed = collective.sum(total)
    embeddings = slice(1, -labels)
    return Moments(
        weight=float(summed[0, 0]),
        embeddings=summed[0, embeddings],
        targets=summed[0, -labels:],
        squares=summed[embeddings, embeddings],
        products=summed[embeddings, -labels:],
    )
