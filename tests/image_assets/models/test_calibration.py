"""Tests of the scale of a network's outputs, and of the probabilities below which it does not answer."""

import numpy as np
import pytest

from image_assets.models.calibration import choose_thresholds, fit_scale, log_loss
from image_assets.models.epochs import Batch
from image_assets.models.rank_training import label_weights
from image_assets.models.ridge_head import fit_ridge_head
from image_assets.models.training_config import TrainingConfig
from tests.support.rank_programs import Alone


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_the_scale_that_made_the_labels_is_found(scale: float) -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(20_000, 4)) * 2 / scale
    label_indexes = np.array([rng.choice(4, p=of) for of in softmax(outputs * scale)])
    assert fit_scale(outputs, label_indexes) == pytest.approx(scale, rel=0.05)


def test_the_scale_is_finite_if_every_image_is_right() -> None:
    outputs = np.eye(3)[[0, 1, 2, 0]]
    scale = fit_scale(outputs, np.array([0, 1, 2, 0]))
    assert 1 < scale < 10
    assert softmax(outputs * scale).max() < 0.95


def rare_and_frequent(count: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    label_indexes = (rng.random(count) < 0.05).astype(int)
    return Batch(rng.normal(size=(count, 20)) + 0.6 * label_indexes[:, None], label_indexes)


def test_by_default_a_rare_label_is_found_and_its_probabilities_are_not_far_too_high() -> None:
    training, validation, test = (rare_and_frequent(count, seed) for seed, count in enumerate([2000, 1000, 20_000]))
    found, excess = {}, {}
    for power in (1.0, TrainingConfig().class_weights_power, 0.0):
        weights = label_weights(training.label_indexes, 2, power, Alone())
        head = fit_ridge_head([training], [validation], weights, Alone())
        scale = fit_scale(head.outputs(validation.inputs), validation.label_indexes)
        probabilities = softmax(head.outputs(test.inputs) * scale)
        rare, predicted = test.label_indexes == 1, probabilities.argmax(axis=1) == 1
        found[power] = predicted[rare].mean()
        excess[power] = probabilities[predicted, 1].mean() - rare[predicted].mean()
    assert found[1.0] > found[0.5] > 0.5 > 0.1 > found[0.0]
    assert excess[1.0] > 0.4 > 0.25 > excess[0.5]


def test_it_does_not_sharpen_outputs_that_say_nothing() -> None:
    outputs = np.random.default_rng(0).normal(size=(500, 3))
    label_indexes = np.random.default_rng(1).integers(0, 3, 500)
    assert fit_scale(outputs, label_indexes) < 0.3


def test_the_log_loss_is_that_of_scikit_learn() -> None:
    from sklearn import metrics

    logits = np.random.default_rng(0).normal(size=(50, 3))
    label_indexes = np.random.default_rng(1).integers(0, 3, 50)
    expected = metrics.log_loss(label_indexes, softmax(logits), labels=[0, 1, 2])
    assert log_loss(logits, label_indexes) == pytest.approx(expected)


def test_a_threshold_is_the_lowest_probability_with_the_requested_precision() -> None:
    # Label 0 is answered at 0.9 (right), 0.8 (right), 0.7 (wrong) and 0.6 (right); label 1 at 0.9 (wrong).
    sure = np.array([0.9, 0.8, 0.7, 0.6])
    probabilities = np.concatenate([np.stack([sure, 1 - sure], axis=1), [[0.1, 0.9]]])
    label_indexes = np.array([0, 0, 1, 0, 0])
    found = choose_thresholds(probabilities, label_indexes, precision=0.75)
    assert found.by_label == [0.6, None]
    assert (found.coverage, found.precision) == (pytest.approx(4 / 5), pytest.approx(3 / 4))
    assert choose_thresholds(probabilities, label_indexes, precision=0.99).by_label == [0.8, None]


def test_equal_probabilities_are_answered_together() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.95, 0.05]])
    found = choose_thresholds(probabilities, np.array([0, 1, 0]), precision=0.7)
    assert found.by_label == [0.95, None], "of both images at 0.9 only one is right, whichever comes first"


def test_thresholds_are_short_and_answer_the_images_that_they_come_from() -> None:
    sure = np.array([2 / 3, 0.9123456789])
    found = choose_thresholds(np.stack([sure, 1 - sure], axis=1), np.array([0, 0]), precision=1)
    assert (found.by_label[0], found.coverage) == (0.666666, 1)
    bounded = choose_thresholds(
        np.stack([sure, 1 - sure], axis=1), np.array([0, 0]), precision=1, minimum_probability=2 / 3
    )
    assert bounded.by_label[0] == 2 / 3, "never below the minimum"


def test_a_minimum_probability_is_the_threshold_of_every_label() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    found = choose_thresholds(probabilities, np.array([0, 1, 0]), minimum_probability=0.7)
    assert (found.by_label, found.coverage, found.precision) == ([0.7, 0.7], 2 / 3, 1 / 2)
    nothing = choose_thresholds(probabilities, np.array([0, 1, 0]), minimum_probability=1)
    assert (nothing.coverage, nothing.precision) == (0, None)


def test_both_bounds_hold_together() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.55, 0.45]])
    found = choose_thresholds(probabilities, np.array([0, 0, 0]), precision=0.9, minimum_probability=0.58)
    assert found.by_label == [0.6, None]


def test_a_label_that_is_never_answered_has_no_threshold() -> None:
    found = choose_thresholds(np.array([[0.9, 0.1]]), np.array([0]), precision=0.5)
    assert found.by_label == [0.9, None]
