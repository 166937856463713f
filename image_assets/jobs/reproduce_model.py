"""Reproduction: trains a model version again on the same data, and measures how much the results differ."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from pydantic import Field

from image_assets.data.image_files import IMAGE_KEYS
from image_assets.data.training_cache import find_or_write_cache
from image_assets.jobs.launchpad_examples import with_example
from image_assets.models import lineage
from image_assets.models.backbones import IMPLIED_BACKBONE, Backbone, backbone_of
from image_assets.models.epochs import State, state_digest
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.lineage import code_version, table_versions, unreadable_versions
from image_assets.models.model_evaluations import predict_test_split
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.training import (
    Task,
    TrainingResources,
    to_task,
    train_and_log,
    weights_identity,
)
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_output import WEIGHTS_FILE
from image_assets.models.training_plan import OutputLocations
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from resources.training import BackboneWeights, TrainingProcesses

NOT_COMPARED = {"epoch", "seconds"}  # columns of a history that do not describe the model

History = Sequence[Mapping[str, float]]
# Settings that they did not record.
OF_EARLIER_RELEASES = {
    "head_fit": "epochs",
    "refit": False,
    "backbone": IMPLIED_BACKBONE,
    "class_weights_power": 1.0,
}
NEEDED_TAGS = ("framework", "training_settings", "cache_settings", "processes", "backbone_identity", "table_versions")


@dataclass(frozen=True)
class TrainingOutcome:
    """The results of a training.

    Attributes:
        weights: The trained arrays by name.
        history: The metrics of each epoch.
        predictions: For each image of the test split: path, image_id, label and probability.
    """

    weights: State
    history: History
    predictions: pd.DataFrame


@dataclass(frozen=True)
class Differences:
    """The differences between two outcomes; infinite if only one of them has the value."""

    digests: tuple[str, str]  # SHA-256 of all weights
    weights: dict[str, float]  # the largest absolute difference in each array
    epochs: tuple[int, int]
    metrics: tuple[dict[str, float], ...]  # by epoch, the absolute difference of each metric
    images: int  # predicted by both
    images_of_one: int  # predicted by only one
    agreeing: float  # share of these images with the same label; NaN without images
    probability: float  # the largest difference between probabilities

    @property
    def same(self) -> bool:
        """Whether the outcomes are identical."""
        return (
            len(set(self.digests)) == len(set(self.epochs)) == 1
            and not any(difference for epoch in self.metrics for difference in epoch.values())
            and (self.images_of_one, self.agreeing, self.probability) == (0, 1, 0)
        )


def to_differences(before: TrainingOutcome, after: TrainingOutcome) -> Differences:
    """Compares two outcomes."""
    images = before.predictions.merge(
        after.predictions, how="outer", on=IMAGE_KEYS, suffixes=("", "_after"), indicator=True
    )
    both = images.query("_merge == 'both'").fillna({"label": "", "label_after": ""})
    return Differences(
        digests=(state_digest(before.weights), state_digest(after.weights)),
        weights={
            name: largest_difference(before.weights.get(name), after.weights.get(name))
            for name in {**before.weights, **after.weights}
        },
        epochs=(len(before.history), len(after.history)),
        metrics=tuple(map(metric_differences, before.history, after.history)),
        images=len(both),
        images_of_one=len(images) - len(both),
        agreeing=float((both["label"] == both["label_after"]).mean()),
        probability=largest_difference(
            both["probability"].to_numpy(np.float64), both["probability_after"].to_numpy(np.float64)
        ),
    )


def largest_difference(before: np.ndarray | None, after: np.ndarray | None) -> float:
    """The largest absolute difference between two arrays; infinite if their shapes differ or one is missing."""
    if before is None or after is None or before.shape != after.shape:
        return inf
    before, after = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN
        difference = np.where((before == after) | (np.isnan(before) & np.isnan(after)), 0, np.abs(before - after))
    return float(np.nan_to_num(difference, nan=inf, posinf=inf).max(initial=0))


def metric_differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The absolute difference of each metric of an epoch."""
    names = [name for name in {**before, **after} if name not in NOT_COMPARED]
    return {
        name: largest_difference(*(np.array(epoch[name]) if name in epoch else None for epoch in (before, after)))
        for name in names
    }


def differences_markdown(differences: Differences) -> str:
    """The differences as a report in Markdown."""
    names = list(dict.fromkeys(name for epoch in differences.metrics for name in epoch))
    epochs = enumerate(differences.metrics, 1)
    lines = [
        f"**{'Identical' if differences.same else 'Different'}**: the original and the new training.",
        "",
        f"Weights: SHA-256 {' and '.join(dict.fromkeys(differences.digests))}.",
        "",
        "| weights | largest difference |",
        "|---|---|",
        *(f"| {name} | {difference:.3g} |" for name, difference in differences.weights.items()),
        "",
        f"Epochs: {differences.epochs[0]} originally, {differences.epochs[1]} now.",
        "",
        f"| epoch | {' | '.join(names)} |",
        f"|---{'|---' * len(names)}|",
        *(f"| {epoch} | {' | '.join(f'{of.get(name, inf):.3g}' for name in names)} |" for epoch, of in epochs),
        "",
        f"Predictions on the test split: {differences.agreeing:.2%} of {differences.images:,} images have the same "
        f"label, probabilities differ by up to {differences.probability:.3g}; "
        f"{differences.images_of_one:,} images were predicted by only one of them.",
    ]
    return "\n".join(lines)


class ReproductionConfig(dg.Config):
    """The version to train again."""

    version: int = Field(gt=0, description="The registered model version to train again. The result is not registered.")


@dataclass(frozen=True)
class RecordedTraining:
    """A version's training settings, from its tags."""

    framework: str
    config: TrainingConfig
    cache_settings: dict[str, Any]
    processes: int
    backbone_identity: str
    backbone: Backbone

    @classmethod
    def of(cls, version: ModelVersion) -> "RecordedTraining":
        """The version's settings; a ValueError names tags that are missing or invalid."""
        tags = version.tags
        if missing := [name for name in NEEDED_TAGS if name not in tags]:
            raise ValueError(
                f"{version.uri} cannot be trained again: it lacks the tags {', '.join(missing)}, which versions have "
                f"that were trained by the assets {' and '.join(of.asset for of in FRAMEWORKS.values())}"
            )
        try:
            config = TrainingConfig(**(OF_EARLIER_RELEASES | json.loads(tags["training_settings"])))
            cache_settings, processes = dict(json.loads(tags["cache_settings"])), int(tags["processes"])
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{version.uri} cannot be trained again by this code: one of its tags training_settings, "
                f"cache_settings and processes is invalid: {error}. Correct it, or check out "
                f"{tags.get('code_version', 'the code that trained it')}."
            ) from error
        backbone = backbone_of(tags, "backbone_name")
        return cls(tags["framework"], config, cache_settings, processes, tags["backbone_identity"], backbone)


def tables_at_training(version: ModelVersion, delta_tables: DeltaTables) -> DeltaTables:
    """The tables as of the version's training; a ValueError names tables that can no longer be read."""
    versions = table_versions(version)
    if unreadable := unreadable_versions(delta_tables, versions.items()):
        raise ValueError(f"{version.uri} cannot be trained again: {'; '.join(unreadable.values())}")
    return delta_tables.as_of(versions)


def resources_at_training(
    version: ModelVersion, recorded: RecordedTraining, resources: TrainingResources
) -> TrainingResources:
    """The resources as of the version's training; a ValueError if the backbone has changed."""
    identity = weights_identity(recorded.backbone, recorded.framework, resources.backbone)
    if identity != recorded.backbone_identity:
        raise ValueError(
            f"{version.uri} cannot be trained again: it was trained on backbone {recorded.backbone_identity}, but the "
            f"current one is {identity}. Set IMAGE_ASSETS_BACKBONE to the original weights."
        )
    return replace(
        resources,
        delta_tables=tables_at_training(version, resources.delta_tables),
        caches=resources.caches.model_copy(update=recorded.cache_settings),
        processes=TrainingProcesses(processes=recorded.processes),
    )


def recreate_task(recorded: RecordedTraining, resources: TrainingResources) -> Task:
    """The version's training task; caches that no longer exist are written again."""
    for split in ("training", "validation"):
        find_or_write_cache(resources.delta_tables, resources.caches, split, ranks=recorded.processes)
    return to_task(FRAMEWORKS[recorded.framework], recorded.config, resources)


@contextmanager
def scratch_locations(resources: TrainingResources, mlflow_run_id: str) -> Iterator[OutputLocations]:
    """An empty folder for checkpoints, deleted afterwards, and the embeddings of that time."""
    checkpoints = resources.caches.checkpoints(f"reproduction-{mlflow_run_id}")
    try:
        files = embedding_files(resources.delta_tables)
        yield OutputLocations(resources.tracking.tracking_uri, mlflow_run_id, files, checkpoints)
    finally:
        shutil.rmtree(checkpoints, ignore_errors=True)


def reproduce(
    version: ModelVersion, resources: TrainingResources, on: InferenceDevice, dagster_run_id: str
) -> Mapping[str, dg.MetadataValue | str | bool]:
    """Trains the version again on the same data without registering the result; returns metadata on the differences.

    Raises:
        DamagedVersion: The version's files have changed since they were logged, or must not be loaded.
    """
    recorded = RecordedTraining.of(version)
    resources.registry.require_files_as_logged(version)  # they are loaded to compare predictions
    resources = resources_at_training(version, recorded, resources)
    task = recreate_task(recorded, resources)
    tracking = resources.tracking
    framework = FRAMEWORKS[task.framework]
    with resources.ranks(task.plan, framework) as run, tracking.run_for("reproduce_model") as mlflow_run_id:
        origin = lineage.to_origin(resources.delta_tables, dagster_run_id, "reproduce_model")
        with scratch_locations(resources, mlflow_run_id) as locations:
            logged = train_and_log(task, resources, run, locations, origin)
        again = replace(version, uri=logged.classifier, mlflow_run_id=mlflow_run_id)
        differences = to_differences(*(to_outcome(each, resources, on) for each in (version, again)))
        report = differences_markdown(differences)
        tracking.log_to(mlflow_run_id, "reproduction", {}, {"differences.md": report.encode()})
    return {
        "model_uri": version.uri,
        "same": differences.same,
        "agreeing_predictions": dg.MetadataValue.float(differences.agreeing),
        "code_version": version.tags.get("code_version", "unknown"),
        "code_version_now": code_version(),
        "mlflow_run": dg.MetadataValue.url(tracking.run_url(mlflow_run_id)),
        "differences": dg.MetadataValue.md(report),
    }


def to_outcome(version: ModelVersion, resources: TrainingResources, on: InferenceDevice) -> TrainingOutcome:
    """A version's outcome: weights and history from its MLflow run, predictions made now."""
    weights = logged_weights(version.mlflow_run_id, resources.tracking)
    history = json.loads(resources.tracking.read(version.mlflow_run_id, lineage.HISTORY_FILE))
    return TrainingOutcome(
        weights, history["epochs"], predict_test_split(version, resources.delta_tables, resources.registry, on)
    )


def logged_weights(mlflow_run_id: str, tracking: MlflowTracking) -> State:
    """The trained weights that the run has logged."""
    from safetensors.numpy import load

    return load(tracking.read(mlflow_run_id, WEIGHTS_FILE))


@dg.op(name="reproduce", pool="training")
def reproduce_op(
    context: dg.OpExecutionContext,
    config: ReproductionConfig,
    delta_tables: DeltaTables,
    petastorm_caches: PetastormCaches,
    training_processes: TrainingProcesses,
    backbone: BackboneWeights,
    mlflow_tracking: MlflowTracking,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Trains a version again. The output's metadata contains the differences."""
    resources = TrainingResources(
        delta_tables, petastorm_caches, training_processes, backbone, mlflow_tracking, model_registry
    )
    version = model_registry.version(config.version)
    context.add_output_metadata(reproduce(version, resources, inference_device, context.run.run_id))


@dg.job(
    name="reproduce_model",
    description=with_example(
        "reproduce_model", "Train a model version again on the same data, and compare the results."
    ),
)
def reproduce_model() -> None:
    """Trains one version again."""
    reproduce_op()
