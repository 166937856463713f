"""The last layer in closed form: ridge regression of the labels on the embeddings, from two sums over the ranks.

Least squares on indicator vectors of the labels (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning,
2009, sections 3.4.1 and 4.2). Nothing is random, there are no epochs, and any number of ranks gives the same head up to
rounding in float64. Leave-one-out cross-validation chooses the strength of the penalty; it takes a second pass over the
images, but no further fits (Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2). If an image
has copies, it is not left out with them, and a penalty that is too weak seems best. Validation images have no copies
among the training images: the stronger one of the penalties that are best for either is taken.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from image_assets.models.epochs import Batch, Collective

# Penalties in units of the mean variance of a direction, so that they suit embeddings of any scale.
STRENGTHS = np.geomspace(1e-4, 10, 21)
SUMMED_IMAGES = 1024  # at once: for fewer, adding up (features, features) sums would take longer than computing them


@dataclass(frozen=True)
class RidgeHead:
    """A linear head: `embedding @ kernel + bias` is near 1 for an image's label, and near 0 for the others."""

    kernel: np.ndarray  # (features, labels) float64
    bias: np.ndarray  # (labels,) float64
    strength: float  # one of STRENGTHS
    errors: np.ndarray  # (strengths,): the mean squared error of images that the fit left out; (0,) if none were

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

    @property
    def mean(self) -> np.ndarray:
        """The mean embedding, (features,)."""
        return self.embeddings / self.weight

    @property
    def target(self) -> np.ndarray:
        """The share of each label, (labels,)."""
        return self.targets / self.weight

    @property
    def covariance(self) -> np.ndarray:
        """The embeddings' covariance, times the weight: (features, features)."""
        return self.squares - self.weight * np.outer(self.mean, self.mean)

    @property
    def centered_products(self) -> np.ndarray:
        """The covariance of embeddings and targets, times the weight: (features, labels)."""
        return self.products - self.weight * np.outer(self.mean, self.target)


class RidgeFit:
    """The fit for every strength at once, in the directions along which the embeddings vary independently."""

    def __init__(self, moments: Moments) -> None:
        from scipy.linalg import eigh  # three times as fast as NumPy's with the same method

        self._weight, self._mean, self._target = moments.weight, moments.mean, moments.target
        variances, self._directions = eigh(moments.covariance, driver="evd", overwrite_a=True, check_finite=False)
        variances = np.maximum(variances, 0)  # rounding leaves some slightly negative
        self._products = self._directions.T @ moments.centered_products
        self._shrinkage = 1 / (variances + penalties(STRENGTHS, variances)[:, None])  # (strengths, features)

    def errors(self, batch: Batch, label_weights: np.ndarray, *, fitted: bool) -> np.ndarray:
        """The weighted sum of squared errors of the images, (strengths,); of fitted ones, as if each were left out.

        Args:
            batch: Embeddings (n, features) with their labels.
            label_weights: The weight of each label's images, (labels,).
            fitted: Whether the images are part of the fit.
        """
        weights = label_weights[batch.label_indexes]
        rotated = (batch.inputs - self._mean) @ self._directions
        residuals = np.eye(len(label_weights))[batch.label_indexes] - self._target
        errors = np.empty(len(STRENGTHS))
        for number, shrinkage in enumerate(self._shrinkage):
            shrunk = rotated * shrinkage
            unfitted = residuals - shrunk @ self._products
            if fitted:
                leverages = weights * (1 / self._weight + (shrunk * rotated).sum(axis=1))
                unfitted /= np.maximum(1 - leverages, 1e-6)[:, None]
            errors[number] = weights @ (unfitted**2).sum(axis=1)
        return errors

    def head(self, number: int, errors: np.ndarray) -> RidgeHead:
        """The head with the strength of this number."""
        kernel = self._directions @ (self._shrinkage[number][:, None] * self._products)
        return RidgeHead(kernel, self._target - self._mean @ kernel, float(STRENGTHS[number]), errors / self._weight)


def strongest_best(errors: np.ndarray) -> int:
    """The number of the strength with the smallest error; of equal ones, the strongest."""
    return len(errors) - 1 - int(errors[::-1].argmin())


def penalties(strengths: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The penalties of these strengths, for embeddings with these variances along their directions or features."""
    return strengths * (variances.mean() or 1.0)  # an untrained backbone may give every image the same embedding


def fit_ridge_head(
    images: Iterable[Batch], validation: Iterable[Batch], label_weights: np.ndarray, collective: Collective
) -> RidgeHead:
    """The head for the embeddings of all ranks, with the best of STRENGTHS; every rank gets the same one.

    Args:
        images: This rank's embeddings (n, features), each image once; iterated twice.
        validation: Embeddings of images that the head is not fitted to.
        label_weights: The weight of each label's images, (labels,), such as those of `label_weights`.
        collective: The other ranks.
    """
    fit = RidgeFit(sum_moments(images, label_weights, collective))
    left_out, unseen = (
        collective.sum(sum((fit.errors(batch, label_weights, fitted=fitted) for batch in of), np.zeros(len(STRENGTHS))))
        for of, fitted in ((images, True), (validation, False))
    )
    return fit.head(max(strongest_best(left_out), strongest_best(unseen)), left_out)


def refit_ridge_head(
    images: Iterable[Batch], strength: float, label_weights: np.ndarray, collective: Collective
) -> RidgeHead:
    """The head for the embeddings of all ranks with a strength that is known, in a third of the time."""
    return solve(sum_moments(images, label_weights, collective), strength)


def solve(moments: Moments, strength: float) -> RidgeHead:
    """The head with this strength."""
    from scipy.linalg import solve as solve_equations

    covariance = moments.covariance
    (penalty,) = penalties(np.array([strength]), np.maximum(covariance.diagonal(), 0))
    covariance[np.diag_indices_from(covariance)] += penalty
    kernel = solve_equations(covariance, moments.centered_products, overwrite_a=True, assume_a="sym")
    return RidgeHead(kernel, moments.target - moments.mean @ kernel, strength, np.empty(0))


def sum_moments(images: Iterable[Batch], label_weights: np.ndarray, collective: Collective) -> Moments:
    """The sums over the images of all ranks, in one exchange."""
    labels, total = len(label_weights), np.zeros(())
    for batch in joined(images):
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


def joined(images: Iterable[Batch]) -> Iterator[Batch]:
    """The images in larger batches, of at least SUMMED_IMAGES except for the last one."""
    waiting: list[Batch] = []
    for batch in images:
        waiting.append(batch)
        if sum(len(each.label_indexes) for each in waiting) >= SUMMED_IMAGES:
            yield _as_one(waiting)
            waiting = []
    if waiting:
        yield _as_one(waiting)


def _as_one(batches: Sequence[Batch]) -> Batch:
    inputs, label_indexes = zip(*((batch.inputs, batch.label_indexes) for batch in batches), strict=True)
    return Batch(np.concatenate(inputs), np.concatenate(label_indexes))
