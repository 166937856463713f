"""The checks that a version must pass before it is promoted.

Plain functions; the job `promote_model` runs them before it moves a version.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any  # values of several types

import pandas as pd
from pydantic import Field

from image_assets.models.evaluation import Comparison
from image_assets.models.isolated_scoring import LATER_COLUMNS
from image_assets.models.scoring import SUM_TOLERANCE
from resources.mlflow.model_registry import ModelVersion

LINEAGE = ("framework", "labels", "table_versions", "code_version", "training_settings", "weights_digest")
SIGNIFICANCE_LEVEL = 0.05  # of the difference from the production version's accuracy


@dataclass(frozen=True)
class GateFinding:
    """The result of one check."""

    check: str
    passed: bool
    detail: Annotated[str, Field(alias="said")]  # the name in stage_history, and in the tag of a promotion

    def to_row(self) -> dict[str, Any]:
        """As a struct of stage_history."""
        return {"check": self.check, "passed": self.passed, "said": self.detail}


def lineage_known(version: ModelVersion) -> GateFinding:
    """Whether the version has all tags that describe its origin."""
    lacking = [name for name in LINEAGE if name not in version.tags]
    detail = (
        f"tags missing: {', '.join(lacking)}; register models by training them here" if lacking else "all tags found"
    )
    return GateFinding("lineage", not lacking, detail)


def backbone_trained(version: ModelVersion) -> GateFinding:
    """Whether the backbone was pretrained."""
    backbone = version.tags.get("backbone", "unknown")
    detail = f"the backbone is {backbone}"
    if backbone == "untrained":
        detail += ": set IMAGE_ASSETS_BACKBONE to pretrained weights and train again"
    return GateFinding("backbone", backbone not in ("untrained", "unknown"), detail)


def same_signature(signature: str, expected: str) -> GateFinding:
    """Whether the version returns the columns of the production version and takes the same inputs.

    Columns that versions of earlier releases do not return may be added, and be missing again after a rollback.
    A version that declares no inputs checks them itself and takes those of every version; earlier releases declared
    them. Parameters may differ: all have defaults.
    """
    found, former = (json.loads(one) or {} for one in (signature, expected))
    inputs = [one["inputs"] for one in (found, former) if one.get("inputs")]
    outputs, former_outputs = (required_columns(one.get("outputs")) for one in (found, former))
    passed = outputs == former_outputs and len(set(inputs)) < 2
    return GateFinding("signature", passed, signature if passed else f"found {signature}, expected {expected}")


def required_columns(outputs: str | None) -> list[Any] | None:
    """The columns of a signature, as JSON, that every version returns."""
    columns = json.loads(outputs) if outputs else None
    return columns and [column for column in columns if column.get("name") not in LATER_COLUMNS]


def same_labels(version: ModelVersion, serving: ModelVersion | None, mapping: Mapping[str, str]) -> GateFinding:
    """Whether every label of the production version is one of the version's, or is mapped to one; more are welcome.

    The order may differ: it is that of each version's own probabilities.
    """
    labels, former = version.labels, serving.labels if serving else []
    if not labels:
        tag = version.tags.get("labels")
        found = "tag missing: labels" if tag is None else f"the tag labels is {tag!r}"
        return GateFinding("labels", False, f"{found}; expected a JSON list of texts")
    unknown = [label for label in mapping if serving and label not in former]
    targets = {label: mapping.get(label, label) for label in former}
    missing = [label for label, target in targets.items() if target not in labels]
    found = [", ".join(labels)]
    if added := [label for label in labels if serving and label not in targets.values()]:
        found.append(f"new: {', '.join(added)}")
    if renamed := [f"{label} is now {target}" for label, target in targets.items() if target != label]:
        found.append(", ".join(renamed))
    if missing and serving:
        found.append(
            f"version {serving.version} also has {', '.join(missing)}: map each of them to a label of this version in "
            "label_mapping"
        )
    if unknown:
        found.append(f"label_mapping names {', '.join(unknown)}: expected labels of the production version")
    return GateFinding("labels", not missing and not unknown, "; ".join(found))


def unreadable_files(error: Exception) -> GateFinding:
    """That the version's files cannot be read at all."""
    return GateFinding("files", False, f"cannot be read ({error}): restore them, or promote another version")


def files_as_logged(found: str, logged: str | None) -> GateFinding:
    """Whether the version's files are unchanged since they were logged."""
    if logged is None:
        return GateFinding("files", False, "tag missing: files_digest")
    detail = f"SHA-256 {found}" if found == logged else f"SHA-256 is {found}, {logged} was logged: restore the files"
    return GateFinding("files", found == logged, detail)


def sound_answers(answers: pd.DataFrame, labels: Sequence[str]) -> GateFinding:
    """Whether intact images get a label and valid probabilities, and broken ones get neither.

    Args:
        answers: One row per image: `broken`, `label`, `probability`, `probabilities`, `most_probable_label`.
    """
    if answers.empty:
        return GateFinding("answers", False, "the test split has no images to try the version on: add labeled images")
    wrong = [fault for row in answers.to_dict("records") if (fault := fault_of(row, labels))]  # pyright: ignore[reportArgumentType] - keys are column names
    images, broken = int((~answers["broken"]).sum()), int(answers["broken"].sum())
    detail = f"{images} images and {broken} broken files" + (f": {'; '.join(sorted(set(wrong)))}" if wrong else "")
    return GateFinding("answers", not wrong, detail)


# object: the predictions are not validated yet.
def fault_of(row: Mapping[str, object], labels: Sequence[str]) -> str | None:
    """What is wrong with a prediction; None if it is valid."""
    # A version may abstain, but it must say which label is the most probable.
    label, most_probable, probabilities = row["label"], row.get("most_probable_label"), row["probabilities"]
    label = most_probable if label is None and isinstance(most_probable, str) else label
    if row["broken"]:
        return f"a broken file got the label {label}" if label is not None else None
    if label is None or probabilities is None:
        return "an image got no prediction"
    values = [float(value) for value in probabilities]  # pyright: ignore[reportGeneralTypeIssues] - a list of numbers
    if len(values) != len(labels) or label not in labels:
        return f"{len(values)} probabilities and the label {label}: expected {len(labels)} of {', '.join(labels)}"
    if not math.isclose(sum(values), 1, abs_tol=SUM_TOLERANCE) or min(values) < 0:
        return "the probabilities are not a valid distribution"
    return None


def as_accurate(accuracies: tuple[float, float], comparison: Comparison, tolerance: float) -> GateFinding:
    """Whether the version is as accurate as the production version on the test split.

    It is not if its accuracy is lower by more than the tolerance, or significantly lower by any amount.
    """
    this, other = accuracies
    detail = (
        f"{this:.3f}, version {comparison.compared_with}: {other:.3f}; only one is right on "
        f"{comparison.only_this_right} and {comparison.only_other_right} images, p = {comparison.p_value:.3f}"
    )
    worse = other - this > tolerance or (this < other and comparison.p_value < SIGNIFICANCE_LEVEL)
    return GateFinding("accuracy", not worse, detail)


def same_serving(before: ModelVersion | None, now: ModelVersion | None) -> GateFinding:
    """Whether the version that it was compared with is still in production."""
    this, other = (f"version {each.version}" if each else "none" for each in (before, now))
    detail = f"{this}" if this == other else f"changed from {this} to {other} during the checks: promote again"
    return GateFinding("serving version", this == other, detail)


def to_report(findings: Sequence[GateFinding]) -> str:
    """The findings as a Markdown table."""
    lines = [f"| {'✓' if one.passed else '✗'} | {one.check} | {one.detail.replace('|', '/')} |" for one in findings]
    return "\n".join(["|  | check | found |", "|---|---|---|", *lines])
