"""Metrics of a model version's predictions: accuracy, precision and recall per label, calibration, slices.

Plain functions on pandas DataFrames. "Marked predictions" are the result of `mark_right`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from image_assets.data.image_files import IMAGE_KEYS

NO_ANSWER = "(no answer)"
CONFIDENCE = 0.95  # of the intervals
BINS = 15
LEAST_PROBABILITY = 1e-7  # float32 rounds probabilities to 0, for which the log loss would be infinite

Bound = float | None  # None without images
TRAITS = ("width", "height", "format", "folder")
MIN_SLICE_IMAGES = 10
LISTED_SLICES = 10


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one version on one set of images, as columns of model_evaluations."""

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    calibration_error: float | None
    log_loss: float | None
    coverage: float
    answered_accuracy: float | None
    unlike_share: float | None
    labels: list[str]
    support: list[int]
    precision: list[float]
    precision_low: list[Bound]
    precision_high: list[Bound]
    recall: list[float]
    recall_low: list[Bound]
    recall_high: list[Bound]
    confusion_matrix: list[list[int]]


@dataclass(frozen=True)
class Comparison:
    """How two versions differ on the same images, as columns of model_evaluations."""

    compared_with: int
    only_this_right: int
    only_other_right: int
    p_value: float


def mark_right(answers: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `right`; predictions without a probability lose their label and are not right.

    Where the version abstained, the most probable label counts, so that versions can be compared whatever their
    thresholds are.
    """
    label = answers["label"]
    if "most_probable_label" in answers:
        label = label.where(label.notna(), answers["most_probable_label"])
    label = label.where(answers["probability"].notna(), None)
    return answers.assign(label=label, right=(label == answers["true_label"]).to_numpy(bool))


def evaluate(answers: pd.DataFrame, labels: Sequence[str]) -> Evaluation:
    """All metrics of marked predictions; a missing prediction counts as wrong.

    Labels that the model does not have, and missing predictions, come after the labels of the model. The balanced
    accuracy is the mean recall of the labels that have images (Brodersen et al. 2010, "The balanced accuracy and its
    posterior distribution").
    """
    from sklearn.metrics import confusion_matrix as count
    from sklearn.metrics import precision_recall_fscore_support

    true, predicted = answers["true_label"].to_numpy(object), answers["label"].fillna(NO_ANSWER).to_numpy(object)
    names = [*labels, *sorted({*true, *predicted} - set(labels))]
    precision, recall, _, support = map(
        np.asarray,
        precision_recall_fscore_support(true, predicted, labels=names, zero_division=0),  # pyright: ignore[reportArgumentType] - its stubs know only "warn"
    )
    counts = count(true, predicted, labels=names)
    right = int(answers["right"].sum())
    low, high = interval(right, len(answers))
    precision_low, precision_high = intervals(counts.diagonal(), counts.sum(axis=0))
    recall_low, recall_high = intervals(counts.diagonal(), counts.sum(axis=1))
    return Evaluation(
        images=len(answers),
        accuracy=right / len(answers),
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=float(recall[support > 0].mean()),
        calibration_error=calibration_error(answers),
        log_loss=log_loss(answers, labels),
        coverage=float(answered(answers).mean()),
        answered_accuracy=float(answers.loc[answered(answers), "right"].mean()) if answered(answers).any() else None,
        unlike_share=unlike_share(answers),
        labels=names,
        support=support.tolist(),
        precision=precision.tolist(),
        precision_low=precision_low,
        precision_high=precision_high,
        recall=recall.tolist(),
        recall_low=recall_low,
        recall_high=recall_high,
        confusion_matrix=counts.tolist(),
    )


def by_label(evaluation: Evaluation) -> pd.DataFrame:
    """One row per label, lowest recall first; labels without images come last."""
    columns = ["support", "precision", "precision_low", "precision_high", "recall", "recall_low", "recall_high"]
    figures = {name: pd.array(getattr(evaluation, name), "float64") for name in columns}
    rows = pd.DataFrame({"label": evaluation.labels, **figures})
    rows = rows.loc[rows["label"] != NO_ANSWER]
    return rows.iloc[np.argsort(np.where(rows["support"] > 0, rows["recall"], 2), kind="stable")]


def interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of correct predictions.

    The score interval of Wilson 1927 ("Probable inference, the law of succession, and statistical inference"), which
    is reliable for few images and for shares near 0 and 1, unlike the normal approximation (Brown, Cai and DasGupta
    2001, "Interval estimation for a binomial proportion").
    """
    from scipy.stats import binomtest

    found = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def intervals(right: Iterable[int], images: Iterable[int]) -> tuple[list[Bound], list[Bound]]:
    """The lower and upper bounds of several intervals; None where there are no images."""
    found = [interval(int(some), int(of)) if of else (None, None) for some, of in zip(right, images, strict=True)]
    return [low for low, _ in found], [high for _, high in found]


def calibration_bins(answers: pd.DataFrame) -> pd.DataFrame:
    """Bins of predictions with similar probability: their `images`, mean `probability`, and how many are `right`.

    The 15 bins have equal width, as is usual; those without predictions are left out.
    """
    given = answers.loc[answers["probability"].notna(), ["probability", "right"]].astype(float)
    # Bins include their upper bound, so that a probability of 1 is in the last one.
    bin_numbers = np.clip(np.ceil(given["probability"] * BINS), 1, BINS)
    return given.groupby(bin_numbers).agg(
        images=("right", "size"), probability=("probability", "mean"), right=("right", "sum")
    )


def calibration_error(answers: pd.DataFrame) -> float | None:
    """The mean distance between probability and accuracy; None without predictions.

    The expected calibration error of Naeini et al. 2015 ("Obtaining well calibrated probabilities using Bayesian
    binning") with the 15 bins of Guo et al. 2017 ("On calibration of modern neural networks"). On a few hundred images
    it is biased upwards, because small bins vary by chance.
    """
    bins = calibration_bins(answers)
    if bins.empty:
        return None
    return float((bins["right"] - bins["images"] * bins["probability"]).abs().sum() / bins["images"].sum())


def log_loss(answers: pd.DataFrame, labels: Sequence[str]) -> float | None:
    """The mean negative logarithm of the true label's probability; None if no image has one.

    Unlike the calibration error, it is a proper score: only the right probabilities minimize it (Gneiting and Raftery
    2007, "Strictly proper scoring rules, prediction, and estimation"). Images without a prediction, and those with a
    label that the version does not know, are left out.

    Args:
        answers: With the column `probabilities`, in the order of the labels.
        labels: The labels of the version.
    """
    known = answers.loc[answers["probability"].notna() & answers["true_label"].isin(labels)]
    if known.empty:
        return None
    numbers = known["true_label"].map({label: number for number, label in enumerate(labels)})
    true = [float(of[number]) for of, number in zip(known["probabilities"], numbers, strict=True)]
    return float(-np.log(np.maximum(true, LEAST_PROBABILITY)).mean())


def answered(answers: pd.DataFrame) -> np.ndarray:
    """Whether the version has a prediction for each image and did not abstain, (n,) bool."""
    given = answers["probability"].notna().to_numpy(bool)
    return given & ~answers["abstained"].eq(True).to_numpy(bool) if "abstained" in answers else given


def unlike_share(answers: pd.DataFrame) -> float | None:
    """The share of images that are unlike the training images; None if the version does not say."""
    unlike = answers["unlike_training"].dropna() if "unlike_training" in answers else pd.Series(dtype=bool)
    return float(unlike.astype(bool).mean()) if len(unlike) else None


@dataclass(frozen=True)
class LabelAnswers:
    """How often a version answers with a label, and how many of these answers are right."""

    label: str
    threshold: float | None  # the probability below which the version abstains; None if it always does
    predicted: int  # images with this most probable label
    answered: int
    right: int  # of those answered


def answers_by_label(
    answers: pd.DataFrame, labels: Sequence[str], thresholds: Sequence[float | None]
) -> list[LabelAnswers]:
    """The answers of each label at the version's thresholds, from marked predictions."""
    given = answered(answers)
    found = []
    for label, threshold in zip(labels, thresholds, strict=True):
        predicted = (answers["label"] == label).to_numpy(bool)
        right = int(answers.loc[predicted & given, "right"].sum())
        found.append(LabelAnswers(label, threshold, int(predicted.sum()), int((predicted & given).sum()), right))
    return found


def compare(these: pd.DataFrame, others: pd.DataFrame, compared_with: int) -> Comparison:
    """Compares marked predictions of two versions image by image.

    The exact test of McNemar 1947 ("Note on the sampling error of the difference between correlated proportions"): if
    two versions are equally good, each is equally likely to be the only one that is right. Images on which both are
    right or both are wrong carry no information.
    """
    from scipy.stats import binomtest

    pairs = these[[*IMAGE_KEYS, "right"]].merge(
        others[[*IMAGE_KEYS, "right"]], on=IMAGE_KEYS, suffixes=("_this", "_other")
    )
    only_this = int((pairs["right_this"] & ~pairs["right_other"]).sum())
    only_other = int((pairs["right_other"] & ~pairs["right_this"]).sum())
    differing = only_this + only_other
    p_value = float(binomtest(only_this, differing).pvalue) if differing else 1.0
    return Comparison(compared_with, only_this, only_other, p_value)


@dataclass(frozen=True)
class Slice:
    """The accuracy of a version on images that share a property."""

    by: str
    value: str
    images: int
    accuracy: float
    low: float
    high: float


def with_traits(answers: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns that define slices, from the images' features: size classes, format and folder."""
    images = answers.merge(features[[*IMAGE_KEYS, "width", "height", "format"]], on=IMAGE_KEYS, how="left")
    return images.assign(
        width=images["width"].map(size_class, na_action="ignore"),
        height=images["height"].map(size_class, na_action="ignore"),
        folder=images["path"].str.rpartition("/")[0],
    )


def size_class(pixels: float) -> str:
    """A range of sizes between powers of two, such as `256 to 511 pixels`."""
    low = 1 << max(int(pixels).bit_length() - 1, 0)
    return f"{low} to {2 * low - 1} pixels"


def worst_slices(answers: pd.DataFrame) -> list[Slice]:
    """The slices with the lowest accuracy, the worst first, from marked predictions with the columns of `with_traits`.

    They are ranked by the upper bound of their interval. Ranked by accuracy, the smallest ones would come first,
    because some of many small slices are bad by chance. Slices of fewer than ten images are left out, and so are
    properties that all images share (compare Chung et al. 2019, "Slice Finder: automated data slicing for model
    validation").
    """
    found = [
        Slice(by, str(value), int(images), right / images, *interval(int(right), int(images)))
        for by in TRAITS
        if answers[by].nunique() > 1
        for value, images, right in answers.groupby(by)["right"].agg(["size", "sum"]).itertuples()
        if images >= MIN_SLICE_IMAGES
    ]
    return sorted(found, key=lambda one: (one.high, one.by, one.value))[:LISTED_SLICES]
