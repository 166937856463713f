"""A model version changed its alias or stage → predict_images."""

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256

import dagster as dg

from image_assets.models.stage_mirroring import mirror_moves
from image_assets.models.version_ids import registry_warning
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import PermissionRefused
from resources.mlflow.model_registry import (
    FILES_DIGEST,
    SERVING_STAGE,
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    disagreement,
    serving_version,
    shadows,
    version_numbers,
)
from sensors.attempts import RequestKey, next_request, read_state

JOB_NAME = "predict_images"
INTERVAL_SECONDS = 3  # less than the five seconds between the daemon's ticks, so that none of them is left out
WATCH_SECONDS, POLL_SECONDS = 4.0, 1.0
UNVERIFIED = (
    "Not loaded, because the tag {tag} is missing: {versions}. Nobody knows whether their files are the ones that were "
    "logged. Promote other versions, or these with promote_model and `force: true`, which records their files."
)
VERSION_TAGS = ("framework", "code_version", "dagster_run_id")  # copied from the model version to its runs


def digest(serving: ModelVersion | None, shadow_versions: Sequence[ModelVersion]) -> str:
    """The versions that predict, as one string. The ID keeps versions of different registries apart."""
    predicting = [serving, *shadow_versions]
    return "+".join(f"{of.version}-{sha256(of.version_id.encode()).hexdigest()[:8]}" if of else "" for of in predicting)


def to_request(
    key: RequestKey,
    serving: ModelVersion | None,
    shadow_versions: Sequence[ModelVersion],
    run_tags: Mapping[str, str],
) -> dg.RunRequest:
    """A run that predicts with these versions and shows them in its tags."""
    tags = {"image_assets/pool": "gpu", **run_tags}
    if serving:
        tags |= {"image_assets/model_version": str(serving.version), "image_assets/stage": SERVING_STAGE}
        tags |= {f"image_assets/{name}": serving.tags[name] for name in VERSION_TAGS if name in serving.tags}
    if shadow_versions:
        tags["image_assets/shadow_versions"] = version_numbers(shadow_versions)
    return dg.RunRequest(run_key=str(key), tags=tags)


def stage_changes_watching(seconds: float) -> dg.SensorDefinition:
    """The sensor of the registry, which each tick watches for so long: the daemon makes a tick every five seconds."""

    @dg.sensor(
        job_name=JOB_NAME,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Predicts when another model version enters Production or Staging.",
    )
    def stage_changes(
        context: dg.SensorEvaluationContext,
        model_registry: ModelRegistry,
        delta_tables: DeltaTables,
        inference_device: InferenceDevice,
    ) -> dg.SensorResult | dg.SkipReason:
        """Requests a run when the versions in Production or Staging change, retries failed runs, records changes."""
        until = time.monotonic() + seconds
        while True:
            try:
                versions = model_registry.versions()
                result = request_predictions(context, versions, model_registry, delta_tables, inference_device)
                if isinstance(result, dg.SensorResult) and result.run_requests:
                    return result
                while time.monotonic() + POLL_SECONDS < until:
                    time.sleep(POLL_SECONDS)
                    if model_registry.versions() != versions:
                        break
                else:
                    return result
            except (RegistryUnavailable, UnclearServingVersion) as error:
                return dg.SkipReason(str(error))

    return stage_changes


def request_predictions(
    context: dg.SensorEvaluationContext,
    versions: Sequence[ModelVersion],
    model_registry: ModelRegistry,
    delta_tables: DeltaTables,
    inference_device: InferenceDevice,
) -> dg.SensorResult | dg.SkipReason:
    """Compares the versions in Production and Staging with those of the last request.

    A move of an alias or a stage in MLflow is followed by the other one first.
    """
    refused = None
    other_registry = registry_warning(delta_tables, STAGE_HISTORY, versions, model_registry)
    try:
        versions = mirror_moves(model_registry, delta_tables)
    except PermissionRefused as error:  # then the alias decides alone
        refused = str(error)
    serving = serving_version(versions)
    state = read_state(context.instance, sensor_name=context.sensor_name, job_names=[JOB_NAME], cursor=context.cursor)
    warnings = [warning for warning in (other_registry or disagreement(versions), refused) if warning]
    shadow_versions = [version for version in shadows(versions) if FILES_DIGEST in version.tags]
    predicting = [*([serving] if serving else []), *shadows(versions)]
    if unverified := [version for version in predicting if FILES_DIGEST not in version.tags]:
        warnings.append(UNVERIFIED.format(versions=version_numbers(unverified), tag=FILES_DIGEST))
    if serving is None and not shadow_versions:
        reason = " ".join(warnings) or f"No version of {model_registry.name} is in production."
        return dg.SensorResult(skip_reason=reason, cursor=str(state.key.without_digest()))
    if serving in unverified:
        return dg.SkipReason(" ".join(warnings))
    request = next_request(state, digest(serving, shadow_versions))
    if isinstance(request, RequestKey):
        run_request = to_request(request, serving, shadow_versions, inference_device.run_tags)
        return dg.SensorResult(run_requests=[run_request], cursor=str(request))
    summary = f"Version {serving.version} is serving." if serving else "No version is serving."
    return dg.SkipReason(" ".join([summary, str(request), *(f"Warning: {warning}" for warning in warnings)]))
