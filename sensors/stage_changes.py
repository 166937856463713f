"""A model changed stage → predict_images."""

import dagster as dg

from image_assets.models.stage_history import record_changes
from resources.model_registry import (
    SERVING_STAGE,
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    disagreement,
    serving_version,
)
from resources.thin_tables import ThinTables
from sensors.attempts import Asked, next_request, to_known

JOB_NAME = "predict_images"


def digest(serving: ModelVersion) -> str:
    """The serving version in one string. The MLflow run tells two registries apart that both begin at version 1."""
    return f"{serving.version}-{serving.mlflow_run_id}"


def to_request(asked: Asked, serving: ModelVersion) -> dg.RunRequest:
    """A run that predicts with this version, and shows it in its tags."""
    tags = {"image_assets/model_version": str(serving.version), "image_assets/stage": serving.stage}
    return dg.RunRequest(run_key=str(asked), tags=tags)


@dg.sensor(job_name=JOB_NAME, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def stage_changes(
    context: dg.SensorEvaluationContext, model_registry: ModelRegistry, thin_tables: ThinTables
) -> dg.SensorResult | dg.SkipReason:
    """Predict when another version serves, and again when that failed; write down what was moved in MLflow."""
    try:
        versions = model_registry.versions()
        record_changes(versions, thin_tables)
        serving = serving_version(versions)
    except (RegistryUnavailable, UnclearServingVersion) as error:
        return dg.SkipReason(str(error))
    known = to_known(context.instance, sensor_name=context.sensor_name, job_names=[JOB_NAME], cursor=context.cursor)
    report = disagreement(versions)
    if serving is None:
        reason = report or f"no version of {model_registry.name} is in stage {SERVING_STAGE}"
        return dg.SensorResult(skip_reason=reason, cursor=str(known.asked.forgotten()))
    request = next_request(known, digest(serving))
    if isinstance(request, Asked):
        return dg.SensorResult(run_requests=[to_request(request, serving)], cursor=str(request))
    return dg.SkipReason(f"version {serving.version} serves; {request}" + (f". But {report}" if report else ""))
