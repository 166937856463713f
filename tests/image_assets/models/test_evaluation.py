"""The figures of a version are those of the books, whatever its answers are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import log_loss as log_loss_of_scikit_learn

from image_assets.models.evaluation import (
    answers_by_label,
    by_label,
    calibration_bins,
    calibration_error,
    compare,
    evaluate,
    interval,
    log_loss,
    mark_right,
)

LABELS = ["daisy", "roses", "tulips"]


def answers(true: Sequence[str], predicted: Sequence[str | None], probability: Any = 0.9) -> pd.DataFrame:
    """Judged answers on images that are identified by their position."""
    places = [str(place) for place in range(len(true))]
    columns = {"path": places, "image_id": places, "true_label": true, "label": predicted, "probability": probability}
    uniform = [1 / 500] * 500  # of as many labels as any test has
    return mark_right(pd.DataFrame(columns).assign(probabilities=[uniform] * len(true)))


def rightness(right: str) -> pd.DataFrame:
    """Judged answers, right where there is an x."""
    return answers(["daisy"] * len(right), ["daisy" if letter == "x" else "roses" for letter in right])


def test_accuracy_precision_recall_and_support_of_a_small_example() -> None:
    true = ["daisy", "daisy", "daisy", "roses", "roses", "tulips"]
    predicted = ["daisy", "daisy", "roses", "roses", "tulips", "tulips"]
    found = evaluate(answers(true, predicted), LABELS)
    assert (found.images, found.accuracy, found.labels) == (6, 4 / 6, LABELS)
    assert found.confusion_matrix == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.support == [3, 2, 1]
    assert found.precision == [1, 1 / 2, 1 / 2]
    assert found.recall == [2 / 3, 1 / 2, 1]
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert list(zip(found.recall_low, found.recall_high, strict=True)) == [
        interval(2, 3),
        interval(1, 2),
        interval(1, 1),
    ]
    assert list(zip(found.precision_low, found.precision_high, strict=True)) == [
        interval(2, 2),
        interval(1, 2),
        interval(1, 2),
    ]


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (5, 10), (81, 263), (99_000, 100_000)])
def test_intervals_are_wilsons(right: int, images: int) -> None:
    z, share = 1.959963984540054, right / images
    center = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    assert interval(right, images) == pytest.approx((center - half, center + half), abs=1e-9)


def test_no_answer_and_no_probability_are_wrong_answers() -> None:
    found = evaluate(answers(["daisy"] * 4, ["daisy", None, "daisy", "roses"], [0.9, None, np.nan, 0.8]), LABELS[:2])
    assert found.accuracy == 1 / 4
    assert found.labels == ["daisy", "roses", "(no answer)"]
    assert found.confusion_matrix == [[1, 1, 2], [0, 0, 0], [0, 0, 0]]


def test_where_the_version_abstained_its_most_probable_label_counts() -> None:
    found = answers(["daisy"] * 4, ["daisy", None, None, "roses"])
    found["abstained"] = [False, True, True, None]
    found["most_probable_label"] = ["daisy", "daisy", "roses", "roses"]
    figures = evaluate(mark_right(found), LABELS)
    assert (figures.accuracy, figures.coverage, figures.answered_accuracy) == (2 / 4, 2 / 4, 1 / 2)
    of_daisy, of_roses = answers_by_label(mark_right(found), LABELS[:2], [0.5, None])
    assert (of_daisy.predicted, of_daisy.answered, of_daisy.right) == (2, 1, 1)
    assert (of_roses.predicted, of_roses.answered, of_roses.right) == (2, 1, 0)


def test_the_share_of_images_unlike_the_training_images_leaves_out_failures() -> None:
    found = answers(["daisy"] * 4, ["daisy"] * 4)
    assert evaluate(found, LABELS).unlike_share is None
    found["unlike_training"] = [True, False, False, None]
    assert evaluate(found, LABELS).unlike_share == 1 / 3
    found["unlike_training"] = None
    assert evaluate(found, LABELS).unlike_share is None


def test_a_version_that_does_not_abstain_covers_what_it_predicts() -> None:
    figures = evaluate(answers(["daisy"] * 4, ["daisy", "daisy", "roses", None], [0.9, 0.8, 0.7, np.nan]), LABELS)
    assert (figures.coverage, figures.answered_accuracy) == (3 / 4, 2 / 3)
    nothing = evaluate(answers(["daisy"], [None], np.nan), LABELS)
    assert (nothing.coverage, nothing.answered_accuracy) == (0, None)


def test_labels_on_one_side_only_have_figures_where_they_can() -> None:
    found = evaluate(answers(["daisy", "orchids"], ["daisy", "daisy"]), LABELS)
    assert found.labels == [*LABELS, "orchids"]
    assert found.support == [1, 0, 0, 1]
    assert (found.recall_low[1], found.recall_high[1]) == (None, None), "no image has the label"
    assert (found.precision_low[3], found.precision_high[3]) == (None, None), "the model does not know the label"
    assert (found.recall_low[3], found.recall_high[3]) == interval(0, 1)
    assert found.balanced_accuracy == 1 / 2


def test_a_single_image_is_judged() -> None:
    found = evaluate(answers(["roses"], ["roses"], 0.75), LABELS)
    assert (found.images, found.accuracy, found.balanced_accuracy, found.calibration_error) == (1, 1, 1, 0.25)
    assert (found.accuracy_low, found.accuracy_high) == pytest.approx((0.2065, 1), abs=1e-4)


def test_five_hundred_labels_are_judged_as_scikit_learn_does() -> None:
    labels = [f"label {number}" for number in range(500)]
    random = np.random.default_rng(0)
    true = random.choice(labels[:200], 4000).tolist()  # most labels have no image
    predicted = np.where(random.random(4000) < 0.7, true, random.choice(labels[:200], 4000)).tolist()
    found = evaluate(answers(true, predicted), labels)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, predicted))
    assert [len(figures) for figures in (found.recall, found.recall_low, found.confusion_matrix)] == [500] * 3
    assert sum(found.support) == 4000


def test_the_label_with_the_lowest_recall_comes_first_and_those_without_images_last() -> None:
    rows = by_label(evaluate(answers(["roses", "roses", "daisy"], ["roses", None, "daisy"]), ["tulips", *LABELS[:2]]))
    assert rows["label"].tolist() == ["roses", "daisy", "tulips"]
    assert rows["support"].tolist() == [2, 1, 0]


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    surer, less_sure = [0.9] * 20, [0.6] * 20
    predicted = ["daisy"] * 14 + ["roses"] * 6 + ["daisy"] * 13 + ["roses"] * 7  # 70 % and 65 % are right
    found = answers(["daisy"] * 40, predicted, surer + less_sure)
    assert calibration_error(found) == pytest.approx(0.5 * 0.2 + 0.5 * 0.05)
    bins = calibration_bins(found)
    assert bins["images"].tolist() == [20, 20]
    assert bins["probability"].tolist() == pytest.approx([0.6, 0.9])
    assert bins["right"].tolist() == [13, 14]


@pytest.mark.parametrize("images", [1, 40, 1000])
def test_bins_are_equally_wide_and_hold_all_answers(images: int) -> None:
    probability = np.random.default_rng(images).random(images).astype(np.float32)
    bins = calibration_bins(answers(["daisy"] * images, ["daisy"] * images, probability))
    edges = np.linspace(0, 1, 16)
    counts = np.histogram(probability, edges)[0]
    assert bins["images"].tolist() == counts[counts > 0].tolist()
    for number, mean in bins["probability"].items():
        assert edges[int(number) - 1] <= mean <= edges[int(number)]  # pyright: ignore[reportArgumentType] - a number


def test_probabilities_at_the_ends_have_a_bin() -> None:
    bins = calibration_bins(answers(["daisy"] * 3, ["daisy"] * 3, [0.0, 1.0, 1.0]))
    assert (bins.index.tolist(), bins["images"].tolist()) == ([1, 15], [1, 2])


@pytest.mark.parametrize("labels", [["daisy", "roses"], ["roses", "daisy"]])
def test_the_log_loss_is_that_of_scikit_learn(labels: list[str]) -> None:
    random = np.random.default_rng(0)
    true = random.choice(labels, 50)
    probabilities = random.dirichlet([1, 1], 50)
    found = answers(true.tolist(), true.tolist()).assign(probabilities=probabilities.tolist())
    expected = log_loss_of_scikit_learn([labels.index(label) for label in true], probabilities, labels=[0, 1])
    assert log_loss(found, labels) == pytest.approx(expected)


def test_the_log_loss_leaves_out_what_has_no_probability_and_stays_finite() -> None:
    found = answers(["daisy", "daisy", "orchid"], ["daisy", None, "daisy"], [0.5, np.nan, 0.5])
    found["probabilities"] = [[0.5, 0.5], None, [0.5, 0.5]]
    assert log_loss(found, ["daisy", "roses"]) == pytest.approx(np.log(2))
    assert log_loss(found.iloc[1:], ["daisy", "roses"]) is None
    found["probabilities"] = [[0.0, 1.0], None, None]
    assert log_loss(found, ["daisy", "roses"]) == pytest.approx(-np.log(1e-7))


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    random = np.random.default_rng(0)
    probability = random.uniform(0.3, 1, 50_000)
    predicted = np.where(random.random(50_000) < probability, "daisy", "roses").tolist()
    error = calibration_error(answers(["daisy"] * 50_000, predicted, probability))
    assert error is not None
    assert error < 0.01


def test_images_without_an_answer_have_no_calibration() -> None:
    assert calibration_error(answers(["daisy", "roses"], [None, None], np.nan)) is None
    assert calibration_error(answers(["daisy", "roses"], ["daisy", None], [0.5, np.nan])) == 0.5


@pytest.mark.parametrize(
    ("this", "other", "only_this", "only_other", "p_value"),
    [
        ("xxxx", "xxxx", 0, 0, 1),  # alike
        ("xx..", "..xx", 2, 2, 1),
        ("xxxxx.", "......", 5, 0, 2 / 2**5),  # five of five by chance, either way
        ("......", "xxxxx.", 0, 5, 2 / 2**5),
        ("xxxxxxxxx.", ".........x", 9, 1, 2 * (1 + 10) / 2**10),
    ],
)
def test_versions_are_compared_where_one_alone_is_right(
    this: str, other: str, only_this: int, only_other: int, p_value: float
) -> None:
    found = compare(rightness(this), rightness(other), 7)
    assert (found.compared_with, found.only_this_right, found.only_other_right) == (7, only_this, only_other)
    assert found.p_value == pytest.approx(p_value)


def test_only_the_same_images_are_compared_in_whatever_order() -> None:
    these, others = rightness("xx.x"), rightness("x..xxx")
    assert compare(these, others.iloc[::-1], 1).only_this_right == 1
    assert compare(these, others.iloc[::-1], 1).only_other_right == 0
