"""A model changed stage → predict_images."""

from collections.abc import Mapping, Sequence

import dagster as dg

from image_assets.models.stage_history import record_changes
from resources.inference_device import InferenceDevice
from resources.model_registry import (
    SERVING_STAGE,
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    disagreement,
    in_words,
    serving_version,
    shadows,
)
from resources.thin_tables import ThinTables
from sensors.attempts import Asked, next_request, to_known

JOB_NAME = "predict_images"
TOLD_TAGS = ("framework", "code_version", "dagster_run_id")  # of a version, that its runs show


def digest(serving: ModelVersion | None, beside: Sequence[ModelVersion]) -> str:
    """The versions that predict, in one string. The MLflow run tells registries apart that both begin at version 1."""
    first = f"{serving.version}-{serving.mlflow_run_id}" if serving else ""
    return "+".join([first, *(str(version.version) for version in beside)])


def to_request(
    asked: Asked, serving: ModelVersion | None, beside: Sequence[ModelVersion], run_tags: Mapping[str, str]
) -> dg.RunRequest:
    """A run that predicts with these versions, and shows them in its tags."""
    tags = {"image_assets/pool": "gpu", **run_tags}
    if serving:
        told = {name: serving.tags[name] for name in TOLD_TAGS if name in serving.tags}
        tags |= {"image_assets/model_version": str(serving.version), "image_assets/stage": serving.stage}
        tags |= {f"image_assets/{name}": value for name, value in told.items()}
    if beside:
        tags["image_assets/shadow_versions"] = in_words(beside)
    return dg.RunRequest(run_key=str(asked), tags=tags)


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Another model version serves, or is in Staging: let it predict.",
)
def stage_changes(
    context: dg.SensorEvaluationContext,
    model_registry: ModelRegistry,
    thin_tables: ThinTables,
    inference_device: InferenceDevice,
) -> dg.SensorResult | dg.SkipReason:
    """Predict when others are in Production or Staging, and again when that failed; write down who was moved."""
    try:
        versions = model_registry.versions()
        record_changes(versions, thin_tables)
        serving = serving_version(versions)
    except (RegistryUnavailable, UnclearServingVersion) as error:
        return dg.SkipReason(str(error))
    known = to_known(context.instance, sensor_name=context.sensor_name, job_names=[JOB_NAME], cursor=context.cursor)
    report, beside = disagreement(versions), shadows(versions)
    if serving is None and not beside:
        reason = report or f"no version of {model_registry.name} is in stage {SERVING_STAGE}"
        return dg.SensorResult(skip_reason=reason, cursor=str(known.asked.forgotten()))
    request = next_request(known, digest(serving, beside))
    if isinstance(request, Asked):
        wanted = to_request(request, serving, beside, inference_device.run_tags)
        return dg.SensorResult(run_requests=[wanted], cursor=str(request))
    who = f"version {serving.version} serves" if serving else "no version serves"
    return dg.SkipReason(f"{who}; {request}" + (f". But {report}" if report else ""))
