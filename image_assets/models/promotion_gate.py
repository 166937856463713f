"""What a version must be able to do before it serves, and whether it can.

Plain functions of what is known of a version; `promote_model` asks them before it moves anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # values of several types

import pandas as pd

from image_assets.models.evaluation import Comparison
from image_assets.models.scoring import SUM_TOLERANCE
from resources.mlflow.model_registry import ModelVersion

LINEAGE = ("framework", "labels", "table_versions", "code_version", "training_settings", "weights_digest")
SURE = 0.05  # of a p-value: below it, chance does not explain that a version is worse


@dataclass(frozen=True)
class GateFinding:
    """One thing that was looked at before a promotion."""

    check: str
    passed: bool
    detail: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "GateFinding":
        """The reverse of `to_row`."""
        return cls(row["check"], row["passed"], row["said"])

    def to_row(self) -> dict[str, Any]:
        """As stage_history holds it: its column for the detail is called `said`."""
        return {"check": self.check, "passed": self.passed, "said": self.detail}


def lineage_known(version: ModelVersion) -> GateFinding:
    """Whether the version says what it was made of."""
    lacking = [name for name in LINEAGE if name not in version.tags]
    detail = f"it lacks the tags {', '.join(lacking)}: register what the assets train" if lacking else "its tags say it"
    return GateFinding("lineage", not lacking, detail)


def backbone_trained(version: ModelVersion) -> GateFinding:
    """Whether the backbone had weights of before."""
    backbone = version.tags.get("backbone", "unknown")
    detail = f"the backbone is {backbone}"
    if backbone == "untrained":
        detail += ": let IMAGE_ASSETS_BACKBONE name weights, and train again"
    return GateFinding("backbone", backbone not in ("untrained", "unknown"), detail)


def same_signature(signature: str, expected: str) -> GateFinding:
    """Whether the version takes and gives what the serving one does, or else every classifier here."""
    passed = signature == expected
    return GateFinding("signature", passed, signature if passed else f"found {signature}, expected {expected}")


def same_labels(version: ModelVersion, serving: ModelVersion | None, mapping: Mapping[str, str]) -> GateFinding:
    """Whether the version has the serving one's labels, in their order, or else each of them under a stated name."""
    labels = version.labels
    former = serving.labels if serving else labels
    if labels == former:
        return GateFinding("labels", bool(labels), ", ".join(labels) or "it has none")
    gone = [label for label in former if mapping.get(label, label if mapping else "") not in labels]
    detail = f"found {', '.join(labels)}, version {serving.version if serving else ''} has {', '.join(former)}"
    if gone:
        detail += f": say what becomes of {', '.join(gone)} in label_mapping, former label: new label"
    return GateFinding("labels", not gone, detail)


def files_as_logged(found: str, logged: str | None) -> GateFinding:
    """Whether the version's files are those that were logged."""
    if logged is None:
        return GateFinding("files", False, "no tag files_digest says what was logged")
    detail = f"SHA-256 {found}" if found == logged else f"SHA-256 is {found}, {logged} was logged: restore the files"
    return GateFinding("files", found == logged, detail)


def sound_answers(answers: pd.DataFrame, labels: Sequence[str]) -> GateFinding:
    """Whether images get a label with a distribution of probabilities, and broken ones get none.

    `answers` has a row for each image: `broken`, `label`, `probability`, `probabilities`.
    """
    wrong = [fault for row in answers.to_dict("records") if (fault := fault_of(row, labels))]  # pyright: ignore[reportArgumentType] - keys are column names
    images, broken = int((~answers["broken"]).sum()), int(answers["broken"].sum())
    detail = f"{images} images and {broken} broken files" + (f": {'; '.join(sorted(set(wrong)))}" if wrong else "")
    return GateFinding("answers", not wrong and images > 0, detail)


# object: what a model answers is looked at here.
def fault_of(row: Mapping[str, object], labels: Sequence[str]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    label, probabilities = row["label"], row["probabilities"]
    if row["broken"]:
        return f"a broken file is called {label}" if label is not None else None
    if label is None or probabilities is None:
        return "an image has no answer"
    values = [float(value) for value in probabilities]  # pyright: ignore[reportGeneralTypeIssues] - a list of numbers
    if len(values) != len(labels) or label not in labels:
        return f"{len(values)} probabilities and the label {label}: expected {len(labels)} of {', '.join(labels)}"
    if not math.isclose(sum(values), 1, abs_tol=SUM_TOLERANCE) or min(values) < 0:
        return "probabilities are no distribution"
    return None


def as_accurate(accuracies: tuple[float, float], comparison: Comparison, tolerance: float) -> GateFinding:
    """Whether the version is as good as the serving one on the same images of the test split.

    It is not when its accuracy is lower by more than the tolerance, or lower at all by more than chance explains.
    """
    this, other = accuracies
    detail = (
        f"{this:.3f}, version {comparison.compared_with}: {other:.3f}; alone right {comparison.only_this_right} and "
        f"{comparison.only_other_right} times, p = {comparison.p_value:.3f}"
    )
    worse = other - this > tolerance or (this < other and comparison.p_value < SURE)
    return GateFinding("accuracy", not worse, detail)


def same_serving(before: ModelVersion | None, now: ModelVersion | None) -> GateFinding:
    """Whether the version that it was compared with still serves."""
    this, other = (f"version {each.version}" if each else "none" for each in (before, now))
    detail = f"{this} serves" if this == other else f"{this} served, now {other} does: promote again, to be compared"
    return GateFinding("serving version", this == other, detail)


def to_report(findings: Sequence[GateFinding]) -> str:
    """The findings as a table in Markdown."""
    lines = [f"| {'✓' if one.passed else '✗'} | {one.check} | {one.detail.replace('|', '/')} |" for one in findings]
    return "\n".join(["|  | check | found |", "|---|---|---|", *lines])
