"""The report on an evaluation: charts and tables for Dagster and MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from image_assets.images.charts import DOTS_PER_INCH, picture_markdown, short, to_png
from image_assets.images.contact_sheets import contact_sheet
from image_assets.images.corruptions import Corruption
from image_assets.models.evaluation import (
    Comparison,
    Evaluation,
    LabelAnswers,
    Slice,
    by_label,
    calibration_bins,
    calibration_error,
    interval,
    intervals,
)
from image_assets.models.lineage import logged_pictures
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelVersion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG = "#1f77b4", "#ff7f0e"
SHOWN_LABELS = 30
LISTED_LABELS = 30
ARTIFACT_FOLDER = "evaluation"  # in the version's MLflow run
PICTURES: tuple[str, ...] = (
    "confusion_matrix.png",
    "precision_and_recall.png",
    "reliability_diagram.png",
    "mistakes.jpg",
    "explanations.jpg",
)
Metadata = dict[str, dg.MetadataValue]


def mistakes_sheet(mistakes: pd.DataFrame) -> bytes:
    """A contact sheet of wrong predictions with the `content` of their images: predicted and true label."""
    columns = (mistakes[name] for name in ("content", "true_label", "label", "probability"))
    tiles = [
        (content, f"{f'{label} {probability:.0%}' if label else 'no prediction'}, is {true_label}")
        for content, true_label, label, probability in zip(*columns, strict=True)
    ]
    return contact_sheet(tiles, side_pixels=140, columns=6)


def reliability_diagram(answers: pd.DataFrame) -> bytes:
    """A reliability diagram of marked predictions: accuracy by probability, and a histogram, as PNG.

    Below the diagonal, a version is overconfident. The bins are those of the calibration error (DeGroot and Fienberg
    1983, "The comparison and evaluation of forecasters").
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 6), dpi=DOTS_PER_INCH, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_bins(top, calibration_bins(answers))
    error = calibration_error(answers)
    top.set(title="no predictions" if error is None else f"calibration error {error:.3f}", ylabel="accuracy")
    given = answers[answers["probability"].notna()]
    of = [given.loc[given["right"] == right, "probability"].to_numpy(float) for right in (True, False)]
    bottom.hist(of, bins=np.linspace(0, 1, 41).tolist(), stacked=True, color=[RIGHT, WRONG], label=["right", "wrong"])
    bottom.set(xlabel="probability", ylabel="images")
    bottom.set_ylim(0, max(1, bottom.get_ylim()[1]))
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    bottom.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return to_png(figure)


def precision_and_recall(evaluation: Evaluation) -> bytes:
    """A chart of precision and recall per label with intervals, as PNG; shows the labels with the lowest recall."""
    from matplotlib.figure import Figure

    labels = by_label(evaluation)
    shown = labels.head(SHOWN_LABELS)
    figure = Figure(figsize=(7, 1.4 + 0.26 * len(shown)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for name, color, offset in (("recall", RIGHT, -0.14), ("precision", WRONG, 0.14)):
        share, low, high = (shown[column].to_numpy() for column in (name, f"{name}_low", f"{name}_high"))
        positions = np.where(np.isnan(low), np.nan, np.arange(len(shown)) + offset)
        axes.errorbar(
            share,
            positions,
            xerr=_lengths(share, low, high),
            fmt="o",
            color=color,
            markersize=4,
            elinewidth=1,
            label=name,
        )
    names = [f"{short(name)} ({support:.0f})" for name, support in zip(shown["label"], shown["support"], strict=True)]
    axes.set_yticks(range(len(shown)), names, parse_math=False, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    which = f" of {len(shown)} of {len(labels)} labels, lowest recall first" if len(labels) > len(shown) else ""
    axes.set_title(f"precision and recall{which}", fontsize=10)
    axes.set_xlabel("share with 95 % interval; number of images in parentheses", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return to_png(figure)


def accuracy_by_corruption(results: Mapping[Corruption | None, Evaluation]) -> bytes:
    """A chart of the accuracy by level of each corruption, with 95 % intervals, as PNG; level 0 is as they are."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(corruption.kind for corruption in results if corruption))
    figure = Figure(figsize=(1 + 2.6 * len(kinds), 3.2), dpi=DOTS_PER_INCH, layout="constrained")
    for number, (axes, kind) in enumerate(
        zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True)
    ):
        levels = {
            corruption.level if corruption else 0.0: evaluation
            for corruption, evaluation in results.items()
            if corruption is None or corruption.kind == kind
        }
        found = sorted(levels.items())
        share, low, high = (
            np.array([getattr(of, name) for _, of in found]) for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        axes.errorbar(
            [level for level, _ in found], share, yerr=_lengths(share, low, high), fmt="o-", color=RIGHT, capsize=2
        )
        axes.set(title=kind, xlabel="level", ylim=(0, 1.02))
        if number == 0:
            axes.set_ylabel("accuracy")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return to_png(figure)


def results_table(results: Mapping[Corruption | None, Evaluation]) -> dg.TableMetadataValue:
    """The metrics on images as they are and with each corruption, as metadata."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "images as": str(corruption or "they are"),
                    "images": one.images,
                    "accuracy": to_range(one.accuracy, one.accuracy_low, one.accuracy_high),
                    "calibration error": "–" if one.calibration_error is None else f"{one.calibration_error:.3f}",
                    "log loss": "–" if one.log_loss is None else f"{one.log_loss:.3f}",
                    "coverage": f"{one.coverage:.3f}",
                    "unlike training": "–" if one.unlike_share is None else f"{one.unlike_share:.3f}",
                }
            )
            for corruption, one in results.items()
        ]
    )


def _draw_bins(axes: "Axes", bins: pd.DataFrame) -> None:
    low, high = (np.array(ends, float) for ends in intervals(bins["right"], bins["images"]))
    share = (bins["right"] / bins["images"]).to_numpy()
    axes.plot([0, 1], [0, 1], "--", color="#888888", linewidth=1, label="ideal")
    axes.errorbar(
        bins["probability"],
        share,
        yerr=_lengths(share, low, high),
        fmt="o-",
        color=RIGHT,
        markersize=4,
        capsize=2,
        linewidth=1,
        label="predictions, with 95 % intervals",
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)


def _lengths(share: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    # Rounding can put a bound slightly beyond a share of 0 or 1.
    return np.maximum([share - low, high - share], 0)


@dataclass(frozen=True)
class Report:
    """The evaluation of one version, with pictures by file name."""

    version: ModelVersion
    evaluation: Evaluation
    slices: Sequence[Slice]
    comparison: Comparison | None
    pictures: Mapping[str, bytes]
    abstention: Sequence[LabelAnswers] = ()  # empty for a version that never abstains

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that MLflow shows for the run."""
        figures = {
            "test_accuracy": self.evaluation.accuracy,
            "test_balanced_accuracy": self.evaluation.balanced_accuracy,
            "test_calibration_error": self.evaluation.calibration_error,
            "test_log_loss": self.evaluation.log_loss,
        }
        if self.abstention:
            figures["test_coverage"] = self.evaluation.coverage
            figures["test_answered_accuracy"] = self.evaluation.answered_accuracy
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def metadata(self) -> Metadata:
        """Pictures and tables as metadata, with names that end in the version."""
        shown: Metadata = {
            Path(name).stem: dg.MetadataValue.md(picture_markdown(picture, self.title))
            for name, picture in self.pictures.items()
        }
        shown["labels"] = labels_table(self.evaluation)
        if self.abstention:
            shown["abstention"] = abstention_table(self.abstention)
        if self.slices:
            shown["worst_slices"] = slices_table(self.slices)
        if self.comparison:
            shown["comparison"] = dg.MetadataValue.text(to_sentence(self.comparison, self.version.version))
        return {f"{name}_v{self.version.version}": value for name, value in shown.items()}

    @property
    def title(self) -> str:
        """The version and its accuracy."""
        evaluation, framework = self.evaluation, self.version.tags.get("framework", "unknown framework")
        return (
            f"version {self.version.version} ({framework}), accuracy {evaluation.accuracy:.3f} "
            f"({evaluation.accuracy_low:.3f} to {evaluation.accuracy_high:.3f})"
        )


def earlier_pictures(version: ModelVersion, tracking: MlflowTracking, made: Metadata) -> Metadata:
    """The pictures of an earlier run's evaluation; empty if this run made them."""
    files = {f"{Path(name).stem}_v{version.version}": f"{ARTIFACT_FOLDER}/{name}" for name in PICTURES}
    if files.keys() <= made.keys():
        return {}
    return logged_pictures(tracking, version.mlflow_run_id, files, f"version {version.version}, evaluated earlier")


def labels_table(evaluation: Evaluation) -> dg.TableMetadataValue:
    """Precision and recall per label, lowest recall first, as metadata."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "label": row["label"],
                    "images": int(row["support"]),
                    "precision": to_range(row["precision"], row["precision_low"], row["precision_high"]),
                    "recall": to_range(row["recall"], row["recall_low"], row["recall_high"]),
                }
            )
            for row in by_label(evaluation).head(LISTED_LABELS).to_dict("records")
        ]
    )


def slices_table(slices: Sequence[Slice]) -> dg.TableMetadataValue:
    """The slices with the lowest accuracy, as metadata."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "by": one.by,
                    "value": one.value,
                    "images": one.images,
                    "accuracy": to_range(one.accuracy, one.low, one.high),
                }
            )
            for one in slices
        ]
    )


def abstention_table(labels: Sequence[LabelAnswers]) -> dg.TableMetadataValue:
    """For each label, the threshold, how many of its predictions are answers, and their precision, as metadata."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "label": one.label,
                    "threshold": "never answered" if one.threshold is None else f"{one.threshold:.3f}",
                    "predicted": one.predicted,
                    "answered": one.answered,
                    "precision": to_range(one.right / one.answered, *interval(one.right, one.answered))
                    if one.answered
                    else "–",
                }
            )
            for one in labels
        ]
    )


def to_range(share: float, low: float, high: float) -> str:
    """A share with its interval; a dash if there are no images."""
    return "–" if isnan(low) else f"{share:.3f} ({low:.3f} to {high:.3f})"


def to_sentence(comparison: Comparison, version: int) -> str:
    """How two versions differ, as a sentence."""
    other = comparison.compared_with
    return (
        f"Only version {version} is right on {comparison.only_this_right:,} images, only version {other} on "
        f"{comparison.only_other_right:,} (exact McNemar test: p = {comparison.p_value:.3g})."
    )
