"""An evaluation for people: its pictures and tables, for Dagster and for MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import dagster as dg

from image_assets.models.evaluation import Comparison, Evaluation, by_label
from image_assets.models.kept_pictures import kept_pictures
from image_assets.models.slices import Slice
from image_assets.pictures import to_markdown
from resources.mlflow_tracking import MlflowTracking
from resources.model_registry import ModelVersion

LISTED = 30

FOLDER = "evaluation"  # of a version's MLflow run
PICTURES: tuple[str, ...] = (
    "confusion_matrix.png",
    "precision_and_recall.png",
    "reliability_diagram.png",
    "mistakes.jpg",
)

Metadata = dict[str, dg.MetadataValue]


@dataclass(frozen=True)
class Report:
    """What is known of one version: its figures, and the pictures by file name."""

    version: ModelVersion
    evaluation: Evaluation
    slices: Sequence[Slice]
    comparison: Comparison | None
    pictures: Mapping[str, bytes]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by which MLflow compares runs."""
        figures = {
            "test_accuracy": self.evaluation.accuracy,
            "test_balanced_accuracy": self.evaluation.balanced_accuracy,
            "test_calibration_error": self.evaluation.calibration_error,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def metadata(self) -> Metadata:
        """The pictures and tables as Dagster shows them, named with the version."""
        shown: Metadata = {
            Path(name).stem: dg.MetadataValue.md(to_markdown(picture, self.title))
            for name, picture in self.pictures.items()
        }
        shown["labels"] = labels_table(self.evaluation)
        if self.slices:
            shown["worst_slices"] = slices_table(self.slices)
        if self.comparison:
            shown["comparison"] = dg.MetadataValue.text(to_sentence(self.comparison, self.version.version))
        return {f"{name}_v{self.version.version}": value for name, value in shown.items()}

    @property
    def title(self) -> str:
        """Which version it is, and how good."""
        evaluation, framework = self.evaluation, self.version.tags["framework"]
        return (
            f"version {self.version.version} ({framework}), accuracy {evaluation.accuracy:.3f} "
            f"({evaluation.accuracy_low:.3f} to {evaluation.accuracy_high:.3f})"
        )


def earlier_look(version: ModelVersion, tracking: MlflowTracking, made: Metadata) -> Metadata:
    """The pictures of a version that an earlier run evaluated; nothing where this run has made them."""
    files = {f"{Path(name).stem}_v{version.version}": f"{FOLDER}/{name}" for name in PICTURES}
    if files.keys() <= made.keys():
        return {}
    return kept_pictures(tracking, version.mlflow_run_id, files, f"version {version.version}, evaluated before")


def labels_table(evaluation: Evaluation) -> dg.TableMetadataValue:
    """Precision and recall of each label, the lowest recall first."""
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
            for row in by_label(evaluation).head(LISTED).to_dict("records")
        ]
    )


def slices_table(slices: Sequence[Slice]) -> dg.TableMetadataValue:
    """The worst slices, the worst first."""
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


def to_range(share: float, low: float, high: float) -> str:
    """A share with its interval; a dash where there are no images to say it of."""
    return "–" if isnan(low) else f"{share:.3f} ({low:.3f} to {high:.3f})"


def to_sentence(comparison: Comparison, version: int) -> str:
    """How two versions differ, for a person."""
    other = comparison.compared_with
    return (
        f"on the same images only version {version} is right on {comparison.only_this_right:,}, only version {other} "
        f"on {comparison.only_other_right:,}; equally good versions differ as much with p = {comparison.p_value:.3g}"
    )
