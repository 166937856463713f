"""A person's decision: this version serves from now on."""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
import numpy as np
import pandas as pd
from pydantic import Field
from pyspark.sql import functions as F

from image_assets.data.split_rows import split_rows, with_content
from image_assets.jobs.launchpad_examples import with_example
from image_assets.models.evaluation import compare, judged
from image_assets.models.model_evaluations import SPLIT, answers_of
from image_assets.models.promotion_gate import (
    Finding,
    as_accurate,
    backbone_trained,
    files_as_logged,
    lineage_known,
    same_labels,
    same_serving,
    same_signature,
    sound_answers,
    to_report,
)
from image_assets.models.scoring import with_answers
from image_assets.models.stage_history import Told, record_changes
from resources.delta.delta_tables import DeltaTables
from resources.delta.thin_tables import ThinTables
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
KEPT_IMAGES = 16  # of the test split, the same ones as long as their files are there


class PromotionConfig(dg.Config):
    """Which version goes where, by whose decision and why."""

    version: int = Field(gt=0, description="The registered model version to move.")
    stage: str = Field(default=SERVING_STAGE, description="Production, Staging, Archived or None.")
    person: str | None = Field(default=None, description="Who decides; kept in stage_history.")
    reason: str | None = Field(default=None, description="Why; kept in stage_history.")
    force: bool = Field(default=False, description="Move it against what the checks find; kept in stage_history.")
    tolerance: float = Field(
        default=0.01, ge=0, lt=1, description="By how much the accuracy may be lower than the serving version's."
    )
    label_mapping: dict[str, str] = Field(
        default={}, description="What became of labels of the serving version: former label, new label."
    )


@dataclass(frozen=True)
class Examination:
    """What is needed to look at a version."""

    delta_tables: DeltaTables
    registry: ModelRegistry
    on: InferenceDevice


def findings_on(
    version: ModelVersion, serving: ModelVersion | None, config: PromotionConfig, by: Examination
) -> list[Finding]:
    """All that is looked at before a version is moved to Staging or Production."""
    other = serving if serving and serving.version != version.version else None
    damage = damage_to(other, by.registry) if other else None
    expected = by.registry.signature(other if other and not damage else version)
    files = files_as_logged(by.registry.files_digest(version.uri), version.tags.get(FILES_DIGEST))
    found = [
        lineage_known(version),
        backbone_trained(version),
        same_signature(by.registry.signature(version), expected),
        same_labels(version, other, config.label_mapping),
        files,
    ]
    if files.passed:  # files of somebody else's are not loaded
        found.append(sound_answers(answers_to_kept_images(version, by), version.labels))
        if damage:
            found.append(Finding("accuracy", True, f"not compared: {damage}"))
        elif other:
            found.append(accuracy_beside(version, other, config.tolerance, by))
    return found


def damage_to(serving: ModelVersion, registry: ModelRegistry) -> str | None:
    """Why the serving version cannot be asked; None where it can. It does not keep a sound one from its place."""
    try:
        registry.require_files_as_logged(serving)
    except DamagedVersion as error:
        return str(error)
    return None


def answers_to_kept_images(version: ModelVersion, by: Examination) -> pd.DataFrame:
    """What the version says of some images of the test split, whole and broken."""
    rows = split_rows(by.delta_tables, SPLIT).orderBy("image_id", "path").limit(KEPT_IMAGES)
    whole = with_content(by.delta_tables, rows).select("path", "content", F.lit(False).alias("broken"))
    half = F.expr("substring(content, 1, length(content) div 3)")
    broken = whole.select("path", half.alias("content"), F.lit(True).alias("broken"))
    text = whole.limit(1).select("path", F.lit(b"no image").alias("content"), F.lit(True).alias("broken"))
    asked = whole.unionByName(broken).unionByName(text)
    device = by.on.resolve(by.delta_tables.spark, version.tags.get("framework", ""))
    return with_answers(asked, by.registry, version, device.name).toPandas()


def accuracy_beside(version: ModelVersion, serving: ModelVersion, tolerance: float, by: Examination) -> Finding:
    """Both versions asked about the test split, image by image."""
    this, other = (judged(answers_of(each, by.delta_tables, by.registry, by.on)) for each in (version, serving))
    comparison = compare(this, other, serving.version)
    return as_accurate((float(np.mean(this["right"])), float(np.mean(other["right"]))), comparison, tolerance)


def refusal(version: ModelVersion, failed: Sequence[Finding]) -> str:
    """Why a version is not moved."""
    told = "; ".join(f"{one.check}: {one.said}" for one in failed)
    return (
        f"version {version.version} stays in stage {version.stage}, nothing was moved. {told}. `force: true` moves it"
    )


def move(number: int, told: Told, registry: ModelRegistry, thin_tables: ThinTables) -> ModelVersion:
    """Move a version as told, and write it down; the version as it is then."""
    moved = registry.promote(number, told.stage, told.to_tags())
    record_changes(registry.versions(), thin_tables)
    return moved


@dg.op(pool="model_registry")
def promote(
    context: dg.OpExecutionContext,
    config: PromotionConfig,
    delta_tables: DeltaTables,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Look whether the version is fit, move it with the stage's alias; `stage_changes` then asks for predictions."""
    version, serving = model_registry.version(config.version), model_registry.serving()
    findings: list[Finding] | None = None
    report: dict[str, dg.MetadataValue] = {}
    if config.stage in GATED:
        by = Examination(delta_tables, model_registry, inference_device)
        findings = [*findings_on(version, serving, config, by), same_serving(serving, model_registry.serving())]
        report["findings"] = dg.MetadataValue.md(to_report(findings))
    failed = [one for one in findings or () if not one.passed]
    if failed and not config.force:
        raise dg.Failure(refusal(version, failed), metadata=report, allow_retries=False)
    told = Told(config.stage, "promote_model", config.person, config.reason, forced=bool(failed), findings=findings)
    moved = move(config.version, told, model_registry, delta_tables.thin)
    context.add_output_metadata(
        {"model_version": moved.version, "stage": moved.stage, "model_uri": moved.uri, **report}
    )


@dg.job(description=with_example("promote_model", "Move a model version to a stage, when it is fit for it."))
def promote_model() -> None:
    """Move one version."""
    promote()
