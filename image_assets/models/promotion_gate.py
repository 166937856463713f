"""What a version must be able to do before it serves, and whether it can.

Plain functions of what is known of a version; `promote_model` asks them before it moves anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from image_assets.models.evaluation import Comparison
from image_assets.models.scoring import SUM_TOLERANCE
from resources.mlflow.model_registry import ModelVersion

LINEAGE = ("framework", "labels", "table_versions", "code_version", "training_settings", "weights_digest")
SURE = 0.05  # of a p-value: below it, chance does not explain that a version is worse


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at before a promotion."""

    check: str
    passed: bool
    said: str


def lineage_known(version: ModelVersion) -> Finding:
    """Whether the version says what it was made of."""
    lacking = [name for name in LINEAGE if name not in version.tags]
    said = f"it lacks the tags {', '.join(lacking)}: register what the assets train" if lacking else "its tags say it"
    return Finding("lineage", not lacking, said)


def backbone_trained(version: ModelVersion) -> Finding:
    """Whether the backbone had weights of before."""
    backbone = version.tags.get("backbone", "unknown")
    said = f"the backbone is {backbone}"
    if backbone == "untrained":
        said += ": let IMAGE_ASSETS_BACKBONE name weights, and train again"
    return Finding("backbone", backbone not in ("untrained", "unknown"), said)


def same_signature(signature: str, expected: str) -> Finding:
    """Whether the version takes and gives what the serving one does, or else every classifier here."""
    passed = signature == expected
    return Finding("signature", passed, signature if passed else f"found {signature}, expected {expected}")


def same_labels(version: ModelVersion, serving: ModelVersion | None, mapping: Mapping[str, str]) -> Finding:
    """Whether the version has the serving one's labels, in their order, or else each of them under a stated name."""
    labels = version.labels
    former = serving.labels if serving else labels
    if labels == former:
        return Finding("labels", bool(labels), ", ".join(labels) or "it has none")
    gone = [label for label in former if mapping.get(label, label if mapping else "") not in labels]
    said = f"found {', '.join(labels)}, version {serving.version if serving else ''} has {', '.join(former)}"
    if gone:
        said += f": say what becomes of {', '.join(gone)} in label_mapping, former label: new label"
    return Finding("labels", not gone, said)


def files_as_logged(found: str, logged: str | None) -> Finding:
    """Whether the version's files are those that were logged."""
    if logged is None:
        return Finding("files", False, "no tag files_digest says what was logged")
    said = f"SHA-256 {found}" if found == logged else f"SHA-256 is {found}, {logged} was logged: restore the files"
    return Finding("files", found == logged, said)


def sound_answers(answers: pd.DataFrame, labels: Sequence[str]) -> Finding:
    """Whether images get a label with a distribution of probabilities, and broken ones get none.

    `answers` has a row for each image: `broken`, `label`, `probability`, `probabilities`.
    """
    wrong = [fault for row in answers.to_dict("records") if (fault := fault_of(row, labels))]  # pyright: ignore[reportArgumentType] - keys are column names
    images, broken = int((~answers["broken"]).sum()), int(answers["broken"].sum())
    said = f"{images} images and {broken} broken files" + (f": {'; '.join(sorted(set(wrong)))}" if wrong else "")
    return Finding("answers", not wrong and images > 0, said)


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


def as_accurate(accuracies: tuple[float, float], comparison: Comparison, tolerance: float) -> Finding:
    """Whether the version is as good as the serving one on the same images of the test split.

    It is not when its accuracy is lower by more than the tolerance, or lower at all by more than chance explains.
    """
    this, other = accuracies
    said = (
        f"{this:.3f}, version {comparison.compared_with}: {other:.3f}; alone right {comparison.only_this_right} and "
        f"{comparison.only_other_right} times, p = {comparison.p_value:.3f}"
    )
    worse = other - this > tolerance or (this < other and comparison.p_value < SURE)
    return Finding("accuracy", not worse, said)


def same_serving(before: ModelVersion | None, now: ModelVersion | None) -> Finding:
    """Whether the version that it was compared with still serves."""
    this, other = (f"version {each.version}" if each else "none" for each in (before, now))
    said = f"{this} serves" if this == other else f"{this} served, now {other} does: promote again, to be compared"
    return Finding("serving version", this == other, said)


def to_report(findings: Sequence[Finding]) -> str:
    """The findings as a table in Markdown."""
    lines = [f"| {'✓' if one.passed else '✗'} | {one.check} | {one.said.replace('|', '/')} |" for one in findings]
    return "\n".join(["|  | check | found |", "|---|---|---|", *lines])
