"""The description of each version in MLflow: how good it is, its labels and data, and where to look at its mistakes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

import pyarrow.compute as pc

from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.lineage import table_versions
from image_assets.models.version_ids import key_of, of_versions
from image_assets.schemas import IMAGE_SPLITS, MODEL_EVALUATIONS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

WRITTEN = "*Written by model_evaluations, which leaves a description without this line as it is.*"
MAX_LABELS = 40
MAX_LABELS_LENGTH = 3000  # MLflow limits a description to 5,000 characters
FIGURES = ["model_name", "model_version", "version_id", "split", "images"]
FIGURES += ["accuracy", "accuracy_low", "accuracy_high", "calibration_error", "coverage", "answered_accuracy"]


def describe_versions(
    versions: Iterable[ModelVersion], delta_tables: DeltaTables, registry: ModelRegistry, gallery_url: str
) -> None:
    """Writes the description of each version that has metrics, unless a person wrote one.

    Raises:
        PermissionRefused: The account may not change versions.
    """
    described = [one for one in versions if not one.description or WRITTEN in one.description]
    of_splits = of_versions(described) & (pc.field("split") != "")
    rows = delta_tables.read(MODEL_EVALUATIONS, FIGURES, of_splits).to_pylist()
    for version in described:
        key = key_of(version).items()
        row = next((row for row in rows if key <= row.items()), None)
        text = description(version, row, gallery_url) if row else version.description
        if text != version.description:
            registry.describe(version.version, text)


# Any: a row's values are of several types.
def description(version: ModelVersion, metrics: Mapping[str, Any], gallery_url: str) -> str:
    """The description of a version, as Markdown, from its row in model_evaluations."""
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    interval = "" if low is None or high is None else f" (95 % interval: {low:.1%} to {high:.1%})"
    error = metrics["calibration_error"]
    coverage, answered = metrics["coverage"], metrics["answered_accuracy"]
    abstention = "" if coverage is None or coverage == 1 else f" It answers for {coverage:.1%} of them"
    if abstention:
        abstention += "." if answered is None else f", and {answered:.1%} of these answers are correct."
    lines = [
        f"**{metrics['accuracy']:.1%}** of the {metrics['images']:,} images of the {metrics['split']} split are "
        f"classified correctly{interval}."
        + ("" if error is None else f" Calibration error: {error:.3f}.")
        + abstention,
        label_list(version.labels),
        origin(version),
        f"[Its mistakes]({gallery_url}/?version={version.version}&answer=mistakes&sort=sure) and "
        f"[all its predictions]({gallery_url}/?version={version.version}) in the gallery.",
        WRITTEN,
    ]
    return "\n\n".join(lines)


def label_list(labels: Sequence[str]) -> str:
    """The number of labels, and as many of them as fit."""
    ends = accumulate(len(label) + 2 for label in labels)
    shown = sum(end <= MAX_LABELS_LENGTH for end in islice(ends, MAX_LABELS))
    return f"{len(labels)} labels: {', '.join(labels[:shown])}{'.' if shown == len(labels) else ' …'}"


def origin(version: ModelVersion) -> str:
    """What a version was trained in, on and from, as far as its tags say."""
    tags, framework = version.tags, FRAMEWORKS.get(version.tags.get("framework", ""))
    images = tags.get("refit_images", tags.get("training_images", ""))
    try:
        tables = table_versions(version)
    except ValueError:  # somebody has edited the tag
        tables = {}
    source = tags.get("backbone")
    weights = f"weights from a {source}" if source in ("folder", "package", "file") else f"{source} weights"
    parts = [
        f"in {framework.title}" if framework else "",
        f"on {int(images):,} images" if images.isdecimal() else "",
        f"of {IMAGE_SPLITS.name} at Delta version {tables[IMAGE_SPLITS.name]}" if IMAGE_SPLITS.name in tables else "",
        f"from {tags['backbone_name']} with {weights}" if "backbone_name" in tags else "",
    ]
    return f"Trained {' '.join(filter(None, parts)) or 'elsewhere'}."
