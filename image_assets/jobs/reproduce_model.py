"""A model version trained again, from the tables as they were, and how far the two are apart."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from pydantic import Field, ValidationError

from image_assets.data.training_cache import find_or_write_cache
from image_assets.jobs.launchpad_examples import with_example
from image_assets.models import lineage, tensorflow_training, torch_training
from image_assets.models.epochs import State, state_digest
from image_assets.models.lineage import code_version, table_versions, unreadable_versions
from image_assets.models.model_evaluations import predict_test_split
from image_assets.models.rank_training import WEIGHTS_FILE
from image_assets.models.training import Task, TrainingConfig, TrainingResources, to_task, train_and_log
from image_assets.models.training_plan import OutputLocations, TrainingResult
from resources.backbone import Backbone
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from resources.processes.training_processes import TrainingProcesses

IMAGE_KEYS = ["path", "image_id"]
NOT_COMPARED = {"epoch", "seconds"}  # what a history holds beside figures of the model

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training came to: weights by name, figures by epoch, and what the model says of the test split.

    `predictions` has a row for each image: path, image_id, label and probability.
    """

    weights: State
    history: History
    predictions: pd.DataFrame


@dataclass(frozen=True)
class Differences:
    """How far two outcomes are apart; infinite where one lacks what the other has."""

    digests: tuple[str, str]  # SHA-256 of all weights
    weights: dict[str, float]  # the largest absolute difference in each array
    epochs: tuple[int, int]
    figures: tuple[dict[str, float], ...]  # by epoch, the absolute difference of each figure
    images: int  # that both were asked about
    images_of_one: int  # that only one was asked about
    agreeing: float  # share of these images under the same label; not a number when there are none
    probability: float  # the largest difference of probabilities

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        return (
            len(set(self.digests)) == len(set(self.epochs)) == 1
            and not any(difference for epoch in self.figures for difference in epoch.values())
            and (self.images_of_one, self.agreeing, self.probability) == (0, 1, 0)
        )


def to_differences(before: TrainingOutcome, after: TrainingOutcome) -> Differences:
    """How far the outcomes are apart."""
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
        figures=tuple(map(figure_differences, before.history, after.history)),
        images=len(both),
        images_of_one=len(images) - len(both),
        agreeing=float((both["label"] == both["label_after"]).mean()),
        probability=largest_difference(
            both["probability"].to_numpy(np.float64), both["probability_after"].to_numpy(np.float64)
        ),
    )


def largest_difference(before: np.ndarray | None, after: np.ndarray | None) -> float:
    """The largest absolute difference between two arrays; infinite between those that cannot be compared."""
    if before is None or after is None or before.shape != after.shape:
        return inf
    before, after = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        difference = np.where((before == after) | (np.isnan(before) & np.isnan(after)), 0, np.abs(before - after))
    return float(np.nan_to_num(difference, nan=inf, posinf=inf).max(initial=0))


def figure_differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The absolute difference of each figure of an epoch."""
    names = [name for name in {**before, **after} if name not in NOT_COMPARED]
    return {
        name: largest_difference(*(np.array(epoch[name]) if name in epoch else None for epoch in (before, after)))
        for name in names
    }


def differences_markdown(differences: Differences) -> str:
    """The differences as a report to read."""
    names = list(dict.fromkeys(name for epoch in differences.figures for name in epoch))
    epochs = enumerate(differences.figures, 1)
    lines = [
        f"**{'The same' if differences.same else 'Not the same'}** as before.",
        "",
        f"Weights: SHA-256 {' and '.join(dict.fromkeys(differences.digests))}.",
        "",
        "| weights | largest difference |",
        "|---|---|",
        *(f"| {name} | {difference:.3g} |" for name, difference in differences.weights.items()),
        "",
        f"Epochs: {differences.epochs[0]} before, {differences.epochs[1]} now.",
        "",
        f"| epoch | {' | '.join(names)} |",
        f"|---{'|---' * len(names)}|",
        *(f"| {epoch} | {' | '.join(f'{of.get(name, inf):.3g}' for name in names)} |" for epoch, of in epochs),
        "",
        f"Predictions on the test split: {differences.agreeing:.2%} of {differences.images:,} images have the same "
        f"label, probabilities differ by up to {differences.probability:.3g}; "
        f"{differences.images_of_one:,} images were asked about once only.",
    ]
    return "\n".join(lines)


TRAIN_FUNCTIONS: dict[str, Callable[..., TrainingResult]] = {
    "tensorflow": tensorflow_training.train,
    "torch": torch_training.train,
}
NEEDED_TAGS = ("framework", "training_settings", "cache_settings", "processes", "backbone_identity", "table_versions")


class ReproductionConfig(dg.Config):
    """Which version is trained again."""

    version: int = Field(gt=0, description="The registered model version to train again; nothing is registered.")


@dataclass(frozen=True)
class RecordedTraining:
    """What a version's tags say of its training."""

    framework: str
    config: TrainingConfig
    cache_settings: dict[str, Any]
    processes: int
    backbone_identity: str

    @classmethod
    def of(cls, version: ModelVersion) -> "RecordedTraining":
        """The settings of a version; a ValueError says which tags are not there, or what does not fit."""
        tags = version.tags
        if lacking := [name for name in NEEDED_TAGS if name not in tags]:
            raise ValueError(
                f"{version.uri} cannot be trained again: it lacks the tags {', '.join(lacking)}, which versions have "
                "that were trained by the assets tensorflow_model and torch_model"
            )
        try:
            config = TrainingConfig(**json.loads(tags["training_settings"]))
        except ValidationError as error:
            raise ValueError(
                f"{version.uri} cannot be trained again by this code: its tag training_settings does not fit: {error}; "
                f"check out {tags.get('code_version', 'the code of that time')}"
            ) from error
        cache_settings = json.loads(tags["cache_settings"])
        return cls(tags["framework"], config, cache_settings, int(tags["processes"]), tags["backbone_identity"])


def tables_at_training(version: ModelVersion, delta_tables: DeltaTables) -> DeltaTables:
    """The tables as the version was trained on them; a ValueError says which of them are lost."""
    versions = table_versions(version)
    if found := unreadable_versions(delta_tables, versions.items()):
        raise ValueError(f"{version.uri} cannot be trained again: {'; '.join(found.values())}")
    return delta_tables.as_of(versions)


def resources_at_training(
    version: ModelVersion, recorded: RecordedTraining, resources: TrainingResources
) -> TrainingResources:
    """The workshop as it was when the version was trained."""
    identity = resources.backbone.identity(recorded.framework)
    if identity != recorded.backbone_identity:
        raise ValueError(
            f"{version.uri} cannot be trained again: its backbone was {recorded.backbone_identity}, the one at hand is "
            f"{identity}: let IMAGE_ASSETS_BACKBONE name the weights of that time"
        )
    return replace(
        resources,
        delta_tables=tables_at_training(version, resources.delta_tables),
        caches=resources.caches.model_copy(update=recorded.cache_settings),
        processes=TrainingProcesses(processes=recorded.processes),
    )


def recreate_task(recorded: RecordedTraining, resources: TrainingResources) -> Task:
    """The version's task, its caches written again where they are gone."""
    for split in ("training", "validation"):
        find_or_write_cache(resources.delta_tables, resources.caches, split, ranks=recorded.processes)
    return to_task(recorded.framework, recorded.config, resources)


@contextmanager
def scratch_locations(resources: TrainingResources, mlflow_run_id: str) -> Iterator[OutputLocations]:
    """Places without any embedding or checkpoint of before; what is kept there is gone afterwards."""
    folder = f"{resources.delta_tables.checkpoints}/reproductions/{mlflow_run_id}"
    try:
        yield OutputLocations(
            resources.tracking.tracking_uri, mlflow_run_id, f"{folder}/embeddings", f"{folder}/checkpoints"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reproduce(
    version: ModelVersion, resources: TrainingResources, on: InferenceDevice, dagster_run_id: str
) -> Mapping[str, dg.MetadataValue | str | bool]:
    """Train the version again on what it was trained on, register nothing; metadata on how far the two are apart."""
    recorded = RecordedTraining.of(version)
    resources = resources_at_training(version, recorded, resources)
    task = recreate_task(recorded, resources)
    tracking = resources.tracking
    with tracking.run_for("reproduce_model") as mlflow_run_id:
        origin = lineage.to_origin(resources.delta_tables, dagster_run_id, "reproduce_model")
        with scratch_locations(resources, mlflow_run_id) as locations:
            logged = train_and_log(task, TRAIN_FUNCTIONS[task.framework], resources, locations, origin)
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
    """What a version came to, as its MLflow run and its answers on the test split tell."""
    weights = logged_weights(version.mlflow_run_id, resources.tracking)
    history = json.loads(resources.tracking.read(version.mlflow_run_id, lineage.HISTORY_FILE))
    return TrainingOutcome(
        weights, history["epochs"], predict_test_split(version, resources.delta_tables, resources.registry, on)
    )


def logged_weights(mlflow_run_id: str, tracking: MlflowTracking) -> State:
    """The weights that a training changed, as it logged them."""
    from safetensors.numpy import load

    return load(tracking.read(mlflow_run_id, WEIGHTS_FILE))


@dg.op(name="reproduce", pool="training")
def reproduce_op(
    context: dg.OpExecutionContext,
    config: ReproductionConfig,
    delta_tables: DeltaTables,
    petastorm_caches: PetastormCaches,
    training_processes: TrainingProcesses,
    backbone: Backbone,
    mlflow_tracking: MlflowTracking,
    model_registry: ModelRegistry,
    inference_device: InferenceDevice,
) -> None:
    """Train a version again; the op's metadata says how far the two are apart."""
    resources = TrainingResources(
        delta_tables, petastorm_caches, training_processes, backbone, mlflow_tracking, model_registry
    )
    version = model_registry.version(config.version)
    context.add_output_metadata(reproduce(version, resources, inference_device, context.run_id))


@dg.job(
    name="reproduce_model",
    description=with_example("reproduce_model", "Train a model version again from the tables as they were; compare."),
)
def reproduce_model() -> None:
    """Train one version again."""
    reproduce_op()
