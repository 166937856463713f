"""Promotion: moves a model version to a stage, after checks for Staging and Production."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import dagster as dg
import numpy as np
import pandas as pd
from pydantic import Field

from image_assets.data.image_splits import read_split
from image_assets.jobs.launchpad_examples import with_example
from image_assets.models.evaluation import compare, mark_right
from image_assets.models.model_evaluations import (
    SPLIT,
    answers_on_test_split,
    damage_of,
    marked_answers,
)
from image_assets.models.promotion_gate import (
    GateFinding,
    as_accurate,
    backbone_trained,
    files_as_logged,
    lineage_known,
    same_labels,
    same_serving,
    same_signature,
    sound_answers,
    to_report,
    unreadable_files,
)
from image_assets.models.scoring import predicted_rows, resolve_device, scored_rows
from image_assets.models.stage_history import Promotion, record_changes
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import runs_locally
from resources.delta.following import stored_rows
from resources.devices import InferenceDevice
from resources.mlflow.model_registry import (
    FILES_DIGEST,
    SERVING_STAGE,
    SHADOW_STAGE,
    DamagedVersion,
    ModelRegistry,
    ModelVersion,
)

GATED = (SHADOW_STAGE, SERVING_STAGE)
GATE_IMAGES = 16  # of the test split; the same ones in every run, as long as they exist


class GateConfig(dg.Config):
    """What the gate tolerates."""

    tolerance: float = Field(
        default=0.01, ge=0, lt=1, description="How much lower its accuracy may be than the production model's."
    )
    label_mapping: dict[str, str] = Field(
        default={}, description="Removed labels: the production model's label, the new version's label instead."
    )


class PromotionConfig(GateConfig):
    """The version to move, the stage, who decided it and why."""

    version: int = Field(gt=0, description="The registered model version to move.")
    stage: Literal["Production", "Staging", "Archived", "None"] = Field(
        default=SERVING_STAGE, description="Production, Staging, Archived or None."
    )
    person: str | None = Field(default=None, description="Who decided it; recorded in stage_history.")
    reason: str | None = Field(default=None, description="Why; recorded in stage_history.")
    force: bool = Field(default=False, description="Move it even if checks fail; recorded in stage_history.")


class UnreadableFiles(RuntimeError):
    """The files of a version are missing, or cannot be read."""


def signature_and_digest(version: ModelVersion, registry: ModelRegistry) -> tuple[str, str]:
    """The version's signature and the hash of its files.

    Raises:
        UnreadableFiles: There are none; a hash alone would be that of no files.
    """
    from mlflow.exceptions import MlflowException

    try:
        return registry.signature(version), registry.files_digest(version.uri)
    except (MlflowException, OSError) as error:
        raise UnreadableFiles(str(error)) from error


def gate_findings(
    version: ModelVersion,
    config: GateConfig,
    delta_tables: DeltaTables,
    registry: ModelRegistry,
    device: InferenceDevice,
) -> list[GateFinding]:
    """The results of all checks that a version must pass before it is moved to Staging or Production."""
    serving = registry.serving()
    other = serving if serving and serving.version != version.version else None
    damage = damage_of(other, registry) if other else None  # which must not block its replacement
    findings = [
        lineage_known(version),
        backbone_trained(version),
        same_labels(version, other, config.label_mapping),
    ]
    try:
        signature, found = signature_and_digest(version, registry)
    except UnreadableFiles as error:
        return [*findings, unreadable_files(error), same_serving(serving, registry.serving())]
    files = files_as_logged(found, version.tags.get(FILES_DIGEST))
    expected = registry.signature(other) if other and not damage else signature
    findings += [same_signature(signature, expected), files]
    if files.passed:  # never load files that somebody has replaced
        findings.append(sound_answers(gate_predictions(version, delta_tables, registry, device), version.labels))
        if other and not (this := mark_right(answers_on_test_split(version, delta_tables, registry, device))).empty:
            that = marked_answers(other, delta_tables, registry, device)
            if isinstance(that, str):
                findings.append(GateFinding("accuracy", True, f"not compared: {that}"))
            else:
                accuracies = (float(np.mean(this["right"])), float(np.mean(that["right"])))
                findings.append(as_accurate(accuracies, compare(this, that, other.version), config.tolerance))
    return [*findings, same_serving(serving, registry.serving())]


def gate_predictions(
    version: ModelVersion, delta_tables: DeltaTables, registry: ModelRegistry, device: InferenceDevice
) -> pd.DataFrame:
    """The version's predictions for some images of the test split, and for broken copies of them."""
    resolved = resolve_device(version, device, delta_tables.pyspark)
    rows = read_split(delta_tables, SPLIT).sort_values(["image_id", "path"]).head(GATE_IMAGES)
    images = stored_rows(delta_tables, FEATURED_IMAGES, zip(rows["path"], rows["image_id"], strict=True))
    tried = broken_and_whole(images.rows(["path", "content"], 0, 1))
    if runs_locally(delta_tables.pyspark, images.size_bytes):
        return pd.DataFrame(predicted_rows(tried, registry, version, resolved.name))
    dataframe = delta_tables.spark.createDataFrame([*tried], "path string, content binary, broken boolean")
    return scored_rows(dataframe, registry, version, resolved.name)


def broken_and_whole(images: Iterable[Row]) -> Iterator[Row]:
    """Each image with a broken copy of it, and one file that never was an image."""
    for number, image in enumerate(image for image in images if image["content"]):
        content = image["content"]
        yield image | {"broken": False}
        yield image | {"content": content[: len(content) // 3], "broken": True}
        if number == 0:
            yield image | {"content": b"no image", "broken": True}


def reasons(failed: Sequence[GateFinding]) -> str:
    """Why a version did not pass, for messages."""
    return "; ".join(f"{finding.check}: {finding.detail}" for finding in failed)


def refusal(version: ModelVersion, failed: Sequence[GateFinding]) -> str:
    """The message for a version that is not moved."""
    stays = f"Version {version.version} stays in stage {version.stage}."
    return f"{stays} {reasons(failed)}. To move it anyway, set `force: true`."


def move(
    number: int,
    promotion: Promotion,
    registry: ModelRegistry,
    delta_tables: DeltaTables,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Moves the version, with more tags if given, and records the change; returns the moved version."""
    moved = registry.promote(number, promotion.stage, promotion.to_tags() | dict(tags or {}))
    record_changes(registry.name, registry.versions(), delta_tables)
    return moved


@dg.op(pool="model_registry")
def promote(
    context: dg.OpExecutionContext,
    config: PromotionConfig,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Checks the version, then moves it with the stage's alias; `stage_changes` then requests predictions."""
    version = model_registry.version(config.version)
    findings: list[GateFinding] | None = None
    report: dict[str, dg.MetadataValue] = {}
    if config.stage in GATED:
        findings = gate_findings(version, config, delta_tables, model_registry, inference_device)
        report["findings"] = dg.MetadataValue.md(to_report(findings))
    failed = [finding for finding in findings or () if not finding.passed]
    if failed and not config.force:
        raise dg.Failure(refusal(version, failed), metadata=report, allow_retries=False)
    promotion = Promotion(
        config.stage,
        "promote_model",
        config.person,
        config.reason,
        forced=bool(failed),
        findings=findings,
        account=model_registry.account,
    )
    # Whoever forces a version without the digest vouches for its files, from now on for exactly these.
    tags: dict[str, str] = {}
    if failed:
        stays = f"Version {version.version} stays in stage {version.stage}, also with `force: true`"
        try:
            if FILES_DIGEST not in version.tags:
                _, tags[FILES_DIGEST] = signature_and_digest(version, model_registry)
            model_registry.require_files_as_logged(replace(version, tags={**version.tags, **tags}))
        except UnreadableFiles as error:
            why = f"{stays}: its files cannot be read ({error})"
            raise dg.Failure(why, metadata=report, allow_retries=False) from error
        except DamagedVersion as error:  # in production, it would only fail
            raise dg.Failure(f"{stays}: {error}", metadata=report, allow_retries=False) from error
    moved = move(config.version, promotion, model_registry, delta_tables, tags)
    context.add_output_metadata(
        {"model_version": moved.version, "stage": moved.stage, "model_uri": moved.uri, **report}
    )


@dg.job(
    description=with_example(
        "promote_model", "Move a model version to a stage; for Staging and Production it must pass checks."
    )
)
def promote_model() -> None:
    """Moves one version."""
    promote()
