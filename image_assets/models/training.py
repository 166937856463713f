"""The settings of a training, and the path from caches to a registered version, the same for both frameworks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import dagster as dg
from pydantic import Field

from image_assets.models.logged_classifier import log_classifier
from image_assets.models.trained import Trained
from image_assets.pictures import learning_curves, to_markdown
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS, RAW_IMAGES
from image_assets.split_caches import existing_cache
from image_assets.split_rows import training_labels
from resources.backbone import Backbone
from resources.code_version import code_version
from resources.delta_tables import DeltaTables
from resources.horovod_runner import HorovodRunner
from resources.mlflow_tracking import MlflowTracking
from resources.model_registry import ModelRegistry, ModelVersion
from resources.petastorm_cache import Cache, PetastormCaches

INPUTS = (RAW_IMAGES, FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_FILES)
TRAINING_CODE = "1"  # raise it when the same settings would give another model
FINGERPRINT = "training_fingerprint"


class TrainingConfig(dg.Config):
    """The settings of one training, the same for both frameworks."""

    epochs: int = Field(default=20, gt=0, description="Passes over the training cache.")
    batch_size: int = Field(default=32, gt=0, description="Images per step and process.")
    learning_rate: float = Field(default=0.001, gt=0, description="Step size for one process.")
    seed: int = Field(default=0, description="Fixes shuffling and initial weights.")


@dataclass(frozen=True)
class Workshop:
    """What a training works with."""

    delta_tables: DeltaTables
    caches: PetastormCaches
    horovod: HorovodRunner
    backbone: Backbone
    tracking: MlflowTracking
    registry: ModelRegistry


@dataclass(frozen=True)
class Task:
    """What is to be trained; equal tasks have equal fingerprints."""

    framework: str
    labels: list[str]
    training: Cache
    validation: Cache
    settings: dict[str, int | float]
    backbone: str
    processes: int

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the trained model follows from."""
        parts = [TRAINING_CODE, self.framework, self.labels, self.training.name, self.validation.name]
        return sha256(json.dumps([*parts, self.settings, self.backbone, self.processes]).encode()).hexdigest()[:16]


def to_task(framework: str, config: TrainingConfig, workshop: Workshop) -> Task:
    """The task as the tables and settings are now."""
    labels = training_labels(workshop.delta_tables)
    ranks = workshop.horovod.processes
    training, validation = (
        existing_cache(workshop.delta_tables, workshop.caches, split, labels, ranks)
        for split in ("training", "validation")
    )
    backbone = workshop.backbone.identity(framework)
    return Task(framework, labels, training, validation, config.model_dump(), backbone, ranks)


def trained_version(
    framework: str, train: Callable[..., Trained], config: TrainingConfig, workshop: Workshop, dagster_run_id: str
) -> dg.MaterializeResult:
    """Train and register a version, unless one was registered for the very same task."""
    task = to_task(framework, config, workshop)
    known = workshop.registry.with_tag(FINGERPRINT, task.fingerprint)
    if known:
        return materialized(known, {"trained": False, "why": "nothing changed since this version was trained"})
    with workshop.tracking.run_for(f"{framework}_model") as mlflow_run_id:
        table_versions = {table.name: workshop.delta_tables.version(table) for table in INPUTS}
        log_task(task, table_versions, workshop.delta_tables)
        ranks = workshop.horovod.run(
            workshop.delta_tables.spark,
            train,
            task.training.converter(),
            task.validation.converter(),
            labels=len(task.labels),
            backbone=workshop.backbone.source,
            tracking_uri=workshop.tracking.tracking_uri,
            mlflow_run_id=mlflow_run_id,
            **task.settings,
        )
        trained: Trained = ranks[0]
        curves = learning_curves(trained.history)
        classifier = log_classifier(
            model_uri=str(trained.model_uri),
            labels=task.labels,
            framework=framework,
            tracking_uri=workshop.tracking.tracking_uri,
            mlflow_run_id=mlflow_run_id,
        )
        log_picture(curves, "learning_curves.png")
        tags = {
            "framework": framework,
            "table_versions": json.dumps(table_versions),
            "code_version": code_version(),
            "dagster_run_id": dagster_run_id,
            "labels": json.dumps(task.labels),
            "backbone": trained.backbone,
            FINGERPRINT: task.fingerprint,
        }
        version = workshop.registry.register(classifier, mlflow_run_id, tags)
    return materialized(version, {"trained": True, **to_metadata(trained, curves)})


def log_task(task: Task, table_versions: dict[str, int], delta_tables: DeltaTables) -> None:
    """Log to the open MLflow run what is trained, on which tables, at which Delta versions."""
    import mlflow
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    caches = {"training_cache": task.training.name, "validation_cache": task.validation.name}
    mlflow.log_params({**task.settings, **caches, "processes": task.processes, "labels": len(task.labels)})
    mlflow.set_tags({"labels": json.dumps(task.labels), "code_version": code_version()})
    for table in INPUTS:
        version = table_versions[table.name]
        source = DeltaDatasetSource(path=delta_tables.uri(table), delta_table_version=version)
        mlflow.log_input(MetaDataset(source, name=f"{table.name}@v{version}"), context="training")


def log_picture(picture: bytes, name: str) -> None:
    """Keep a picture with the open MLflow run."""
    from io import BytesIO

    import mlflow
    from PIL import Image

    mlflow.log_image(Image.open(BytesIO(picture)), name)


def to_metadata(trained: Trained, curves: bytes) -> dict[str, dg.MetadataValue | float | int | str]:
    """A training's figures and curves for Dagster."""
    best = max(trained.history, key=lambda epoch: epoch["validation_accuracy"])
    return {
        "validation_accuracy": best["validation_accuracy"],
        "backbone": trained.backbone,
        "processes": trained.size,
        "steps_per_epoch": trained.steps,
        "embedded_images_per_second": round(trained.images_per_second * trained.size, 1),
        "learning_curves": dg.MetadataValue.md(to_markdown(curves, "loss and accuracy by epoch")),
    }


def materialized(
    version: ModelVersion, metadata: dict[str, dg.MetadataValue | float | int | str]
) -> dg.MaterializeResult:
    """A model's answer to Dagster: the version, and where it comes from."""
    return dg.MaterializeResult(
        metadata={
            "model_version": version.version,
            "model_uri": version.uri,
            "mlflow_run_id": version.mlflow_run_id,
            "labels": ", ".join(json.loads(version.tags["labels"])),
            "backbone": version.tags["backbone"],
            **metadata,
        },
        data_version=dg.DataVersion(str(version.version)),
    )
