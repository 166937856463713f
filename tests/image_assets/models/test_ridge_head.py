"""Tests of the head in closed form: equal to explicit fits, for any number of ranks, and for constant embeddings."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from image_assets.models.epochs import Batch
from image_assets.models.ridge_head import STRENGTHS, RidgeHead, fit_ridge_head, refit_ridge_head
from tests.support.rank_programs import Alone

LABELS, FEATURES = 3, 12


class Exchange:
    """Sums between ranks that run in threads of this process."""

    def __init__(self, size: int) -> None:
        self.values: list[np.ndarray] = [np.zeros(0)] * size
        self.barrier = threading.Barrier(size, timeout=30)


class Rank(Alone):
    """One of several ranks."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.size, self._exchange = rank, len(exchange.values), exchange

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all ranks."""
        self._exchange.values[self.rank] = values
        self._exchange.barrier.wait()
        total = np.sum(self._exchange.values, axis=0)
        self._exchange.barrier.wait()
        return total


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose mean depends on the label, with features of very different scales."""
    rng = np.random.default_rng(seed)
    label_indexes = rng.integers(0, LABELS, count)
    centers = np.random.default_rng(9).normal(size=(LABELS, FEATURES))
    scales = np.geomspace(0.1, 10, FEATURES)
    return ((centers[label_indexes] + rng.normal(size=(count, FEATURES))) * scales + 5).astype(
        np.float32
    ), label_indexes


def batched(embeddings: np.ndarray, label_indexes: np.ndarray, size: int = 7) -> list[Batch]:
    return [
        Batch(embeddings[start : start + size], label_indexes[start : start + size])
        for start in range(0, len(label_indexes), size)
    ]


VALIDATION = batched(*images(40, seed=1))


def fitted_by_ranks(parts: Sequence[list[Batch]], weights: np.ndarray) -> list[RidgeHead]:
    exchange = Exchange(len(parts))
    heads: dict[int, RidgeHead] = {}

    def fit(rank: int) -> None:
        heads[rank] = fit_ridge_head(parts[rank], VALIDATION[rank :: len(parts)], weights, Rank(rank, exchange))

    threads = [threading.Thread(target=fit, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [heads[rank] for rank in range(len(parts))]


@pytest.mark.parametrize("weights", [np.ones(LABELS), np.array([0.5, 1.0, 3.0])])
def test_the_left_out_errors_are_those_of_explicit_fits(weights: np.ndarray) -> None:
    from sklearn.linear_model import Ridge

    embeddings, label_indexes = images(40)
    head = fit_ridge_head(batched(embeddings, label_indexes), VALIDATION, weights, Alone())
    targets, of_image = np.eye(LABELS)[label_indexes], weights[label_indexes]
    center = np.average(embeddings, axis=0, weights=of_image)
    variance = (of_image[:, None] * (embeddings - center) ** 2).sum() / FEATURES
    for number in (0, 10, 20):
        errors = []
        for left_out in range(len(embeddings)):
            kept = np.arange(len(embeddings)) != left_out
            explicit = Ridge(alpha=STRENGTHS[number] * variance, solver="cholesky")
            explicit.fit(embeddings[kept].astype(np.float64), targets[kept], sample_weight=of_image[kept])
            errors.append(((targets[left_out] - explicit.predict(embeddings[[left_out]])) ** 2).sum())
        assert head.errors[number] == pytest.approx(np.average(errors, weights=of_image), rel=1e-4)
    best_for_validation = min(STRENGTHS, key=errors_by_strength(embeddings, label_indexes, weights).__getitem__)
    assert head.strength == max(STRENGTHS[head.errors.argmin()], best_for_validation)


def test_copies_of_images_do_not_make_the_penalty_too_weak() -> None:
    embeddings, label_indexes = (np.repeat(of, 4, axis=0) for of in images(20))
    head = fit_ridge_head(batched(embeddings, label_indexes), VALIDATION, np.ones(LABELS), Alone())
    by_strength = errors_by_strength(embeddings, label_indexes, np.ones(LABELS))
    assert STRENGTHS[head.errors.argmin()] < head.strength == min(by_strength, key=by_strength.__getitem__)


def errors_by_strength(embeddings: np.ndarray, label_indexes: np.ndarray, weights: np.ndarray) -> dict[float, float]:
    """The weighted sum of squared errors for the validation images of the head with each strength."""

    def error(head: RidgeHead, of: Batch) -> float:
        errors = ((head.outputs(of.inputs) - np.eye(LABELS)[of.label_indexes]) ** 2).sum(axis=1)
        return float(weights[of.label_indexes] @ errors)

    heads = [refit_ridge_head(batched(embeddings, label_indexes), of, weights, Alone()) for of in STRENGTHS]
    return {head.strength: sum(error(head, of) for of in VALIDATION) for head in heads}


def test_any_number_of_ranks_gives_the_same_head() -> None:
    embeddings, label_indexes = images(60)
    alone = fit_ridge_head(batched(embeddings, label_indexes), VALIDATION, np.ones(LABELS), Alone())
    parts = [batched(embeddings[first::3], label_indexes[first::3]) for first in range(3)]
    for head in fitted_by_ranks(parts, np.ones(LABELS)):
        assert head.strength == alone.strength
        np.testing.assert_allclose(head.kernel, alone.kernel, atol=1e-9)
        np.testing.assert_allclose(head.bias, alone.bias, atol=1e-9)


def test_a_strength_that_is_known_gives_the_head_that_was_chosen() -> None:
    chosen = fit_ridge_head(batched(*images(60)), VALIDATION, np.ones(LABELS), Alone())
    known = refit_ridge_head(batched(*images(60)), chosen.strength, np.ones(LABELS), Alone())
    np.testing.assert_allclose(known.kernel, chosen.kernel, atol=1e-9)
    np.testing.assert_allclose(known.bias, chosen.bias, atol=1e-9)


def test_the_scale_of_the_embeddings_does_not_matter() -> None:
    embeddings, label_indexes = images(60)
    head, scaled = (
        fit_ridge_head(
            batched(embeddings * factor, label_indexes),
            [Batch(of.inputs * factor, of.label_indexes) for of in VALIDATION],
            np.ones(LABELS),
            Alone(),
        )
        for factor in (1, 64)
    )
    assert head.strength == scaled.strength
    np.testing.assert_allclose(head.outputs(embeddings), scaled.outputs(embeddings * 64), atol=1e-6)


def test_it_classifies_new_images() -> None:
    head = fit_ridge_head(batched(*images(300)), VALIDATION, np.ones(LABELS), Alone())
    embeddings, label_indexes = images(300, seed=2)
    assert (head.outputs(embeddings).argmax(axis=1) == label_indexes).mean() > 0.9


def test_equal_embeddings_give_each_label_its_share() -> None:
    label_indexes = np.array([0, 0, 1, 2])
    equal = batched(np.full((4, FEATURES), 3, np.float32), label_indexes)
    for head in (
        fit_ridge_head(equal, equal, np.ones(LABELS), Alone()),
        refit_ridge_head(equal, STRENGTHS[0], np.ones(LABELS), Alone()),
    ):
        np.testing.assert_allclose(head.outputs(np.full((1, FEATURES), 3.0)), [[0.5, 0.25, 0.25]], atol=1e-9)
