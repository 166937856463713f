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
from image_assets.models.evaluation import compare, mark_right
from image_assets.models.model_evaluations import SPLIT, predict_test_split
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
)
from image_assets.models.scoring import score_images
from image_assets.models.stage_history import Promotion, record_changes
from resources.delta.delta_tables import DeltaTables
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
GATE_IMAGES = 16  # of the test split, the same ones as long as their files are there


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
class GateResources:
    """What is needed to look at a version."""

    delta_tables: DeltaTables
    registry: ModelRegistry
    on: InferenceDevice


def gate_findings(
    version: ModelVersion, serving: ModelVersion | None, config: PromotionConfig, gate: GateResources
) -> list[GateFinding]:
    """All that is looked at before a version is moved to Staging or Production."""
    other = serving if serving and serving.version != version.version else None
    damage = damage_of(other, gate.registry) if other else None
    expected = gate.registry.signature(other if other and not damage else version)
    files = files_as_logged(gate.registry.files_digest(version.uri), version.tags.get(FILES_DIGEST))
    found = [
        lineage_known(version),
        backbone_trained(version),
        same_signature(gate.registry.signature(version), expected),
        same_labels(version, other, config.label_mapping),
        files,
    ]
    if files.passed:  # files of somebody else's are not loaded
        found.append(sound_answers(gate_predictions(version, gate), version.labels))
        if damage:
            found.append(GateFinding("accuracy", True, f"not compared: {damage}"))
        elif other:
            found.append(compare_accuracy(version, other, config.tolerance, gate))
    return found


def damage_of(serving: ModelVersion, registry: ModelRegistry) -> str | None:
    """Why the serving version cannot be asked; None where it can. It does not keep a sound one from its place."""
    try:
        registry.require_files_as_logged(serving)
    except DamagedVersion as error:
        return str(error)
    return None


def gate_predictions(version: ModelVersion, gate: GateResources) -> pd.DataFrame:
    """What the version says of some images of the test split, whole and broken."""
    rows = split_rows(gate.delta_tables, SPLIT).orderBy("image_id", "path").limit(GATE_IMAGES)
    whole = with_content(gate.delta_tables, rows).select("path", "content", F.lit(False).alias("broken"))
    half = F.expr("substring(content, 1, length(content) div 3)")
    broken = whole.select("path", half.alias("content"), F.lit(True).alias("broken"))
    text = whole.limit(1).select("path", F.lit(b"no image").alias("content"), F.lit(True).alias("broken"))
    images = whole.unionByName(broken).unionByName(text)
    device = gate.on.resolve(gate.delta_tables.spark, version.tags.get("framework", ""))
    return score_images(images, gate.registry, version, device.name).toPandas()


def compare_accuracy(
    version: ModelVersion, serving: ModelVersion, tolerance: float, gate: GateResources
) -> GateFinding:
    """Both versions asked about the test split, image by image."""
    this, other = (
        mark_right(predict_test_split(each, gate.delta_tables, gate.registry, gate.on)) for each in (version, serving)
    )
    comparison = compare(this, other, serving.version)
    return as_accurate((float(np.mean(this["right"])), float(np.mean(other["right"]))), comparison, tolerance)


def refusal(version: ModelVersion, failed: Sequence[GateFinding]) -> str:
    """Why a version is not moved."""
    reasons = "; ".join(f"{one.check}: {one.detail}" for one in failed)
    return f"version {version.version} stays in stage {version.stage}. {reasons}. `force: true` moves it anyway"


def move(number: int, promotion: Promotion, registry: ModelRegistry, delta_tables: DeltaTables) -> ModelVersion:
    """Move a version as told, and write it down; the version as it is then."""
    moved = registry.promote(number, promotion.stage, promotion.to_tags())
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
    """Look whether the version is fit, move it with the stage's alias; `stage_changes` then asks for predictions."""
    version, serving = model_registry.version(config.version), model_registry.serving()
    findings: list[GateFinding] | None = None
    report: dict[str, dg.MetadataValue] = {}
    if config.stage in GATED:
        gate = GateResources(delta_tables, model_registry, inference_device)
        findings = [*gate_findings(version, serving, config, gate), same_serving(serving, model_registry.serving())]
        report["findings"] = dg.MetadataValue.md(to_report(findings))
    failed = [one for one in findings or () if not one.passed]
    if failed and not config.force:
        raise dg.Failure(refusal(version, failed), metadata=report, allow_retries=False)
    promotion = Promotion(
        config.stage, "promote_model", config.person, config.reason, forced=bool(failed), findings=findings
    )
    moved = move(config.version, promotion, model_registry, delta_tables)
    context.add_output_metadata(
        {"model_version": moved.version, "stage": moved.stage, "model_uri": moved.uri, **report}
    )


@dg.job(description=with_example("promote_model", "Move a model version to a stage, when it is fit for it."))
def promote_model() -> None:
    """Move one version."""
    promote()
