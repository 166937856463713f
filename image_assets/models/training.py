"""From caches to a registered version: the steps of a training, the same for every framework."""

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import dagster as dg

from image_assets.data.image_splits import training_labels
from image_assets.data.sound_splits import require_sound_splits
from image_assets.data.training_cache import existing_cache, find_or_write_cache
from image_assets.images.charts import learning_curves, picture_markdown
from image_assets.models import lineage
from image_assets.models.backbone_weights import has_weights_at_hand, how_to_get_weights, require_packages
from image_assets.models.backbones import (
    Backbone,
    is_external,
    name_in_digests,
    require_supported,
    to_backbone,
)
from image_assets.models.efforts import announcement, duration, expected_seconds
from image_assets.models.embedding_networks import UNTRAINED, EmbeddingNetwork, Export, recorded_network
from image_assets.models.external_backbones import onnx_digest
from image_assets.models.frameworks import FRAMEWORKS, Framework
from image_assets.models.lineage import logged_pictures
from image_assets.models.logged_models import TrainedClassifier, log_classifier
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_plan import (
    OutputLocations,
    TrainingPlan,
    TrainingResult,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.delta.unchanged import describe_once
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from resources.pictures import with_picture_files
from resources.training import BackboneWeights, Run, TrainingProcesses
from resources.weight_files import SOURCES

TRAINING_CODE = "2"  # raise it if the same settings would give another model
CURVES = "loss and accuracy by epoch"
FINGERPRINT = "training_fingerprint"


@dataclass(frozen=True)
class TrainingResources:
    """The resources of a training."""

    delta_tables: DeltaTables
    caches: PetastormCaches
    processes: TrainingProcesses
    backbone: BackboneWeights
    tracking: MlflowTracking
    registry: ModelRegistry

    def ranks(self, plan: TrainingPlan, framework: Framework) -> AbstractContextManager[Run]:
        """Starts the ranks of a plan, which import the framework while the block prepares their work."""
        return self.processes.started(self.delta_tables.pyspark, plan.distributor, framework.rank_imports)


@dataclass(frozen=True)
class Task:
    """What to train; equal tasks have equal fingerprints."""

    framework: str
    labels: list[str]
    training: Cache
    validation: Cache
    plan: TrainingPlan
    backbone: str  # the identity of its weights
    processes: int

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the trained model."""
        parts = [TRAINING_CODE, self.framework, self.labels, self.training.name, self.validation.name]
        plan = {**asdict(self.plan), "backbone": self.backbone}
        for schedule in (plan["head"], plan["fine_tuning"]):
            if schedule["averaged_epochs"] == 1:  # as in releases without the setting
                del schedule["averaged_epochs"]
        for name in ("backbone_name", "page", "pixel_limit"):  # the caches' names have the last two
            del plan[name]
        if self.plan.head_fit == "epochs":  # as in releases without the setting
            del plan["head_fit"]
        if self.plan.class_weights_power == 1 or not self.plan.class_weights:  # likewise
            del plan["class_weights_power"]
        for name in ("refit", "augmented_views", "minimum_probability", "minimum_precision"):
            if not plan[name]:  # likewise
                del plan[name]
        parts += name_in_digests(self.plan.architecture)
        return sha256(json.dumps([*parts, plan, self.processes]).encode()).hexdigest()[:16]


def weights_identity(backbone: Backbone, framework: str, weights: BackboneWeights) -> str:
    """A text that is equal for equal weights of a backbone.

    Raises:
        FileNotFoundError: They are to be in a folder and are not; the message says how to get them.
    """
    own = backbone.implementations[framework]
    if own.source == "onnx":
        return onnx_digest(own.model)
    if own.packaged_weights:
        if weights.source not in SOURCES and not Path(weights.source).is_dir():
            raise FileNotFoundError(
                f"IMAGE_ASSETS_BACKBONE is {weights.source}, which is not a folder: expected a folder, or one of "
                f"{', '.join(SOURCES)}"
            )
        return weights.source if weights.source == "none" else own.packaged_weights
    try:
        return weights.identity(own.weight_files)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {how_to_get_weights(backbone, framework, weights.source)}") from error


def cache_for(backbone: Backbone, resources: TrainingResources, split: str, labels: list[str]) -> Cache:
    """The split's cache with images of the backbone's side, written if only other sides have one."""
    caches, ranks = resources.caches, resources.processes.processes
    if caches.content == "original" or caches.side_pixels in (None, backbone.side_pixels):
        return existing_cache(resources.delta_tables, caches, split, labels, ranks)
    of_its_side = caches.model_copy(update={"side_pixels": backbone.side_pixels})
    return find_or_write_cache(resources.delta_tables, of_its_side, split, ranks=ranks)[0]


def to_task(framework: Framework, config: TrainingConfig, resources: TrainingResources) -> Task:
    """The task for the current tables and settings; a ValueError if they cannot be trained on."""
    config = config.resolved()
    require_supported(config.backbone, framework.name)
    if config.distributor not in framework.distributors:
        raise ValueError(
            f"distributor is {config.distributor!r}, which cannot train in {framework.title}: choose "
            f"{' or '.join(framework.distributors)}"
        )
    backbone = to_backbone(config.backbone)
    require_packages(backbone, framework.name)
    identity = weights_identity(backbone, framework.name, resources.backbone)
    require_sound_splits(resources.delta_tables)
    labels = training_labels(resources.delta_tables)
    training, validation = (cache_for(backbone, resources, split, labels) for split in ("training", "validation"))
    plan = config.plan(len(labels), resources.backbone.source, resources.caches)
    return Task(framework.name, labels, training, validation, plan, identity, resources.processes.processes)


def train_and_register(
    framework: Framework, config: TrainingConfig, resources: TrainingResources, *, dagster_run_id: str
) -> dg.MaterializeResult:
    """Train and register a version, unless one exists for the same task."""
    task = to_task(framework, config, resources)
    own, source = task.plan.architecture.implementations[framework.name], resources.backbone.source
    if own.packaged_weights and source not in SOURCES:
        dg.get_dagster_logger().warning(
            f"IMAGE_ASSETS_BACKBONE is {source}, but {task.plan.backbone_name} has the weights of its package. To use "
            "files in that folder, set the training setting `backbone` to the backbone that they belong to"
        )
    existing = trained_before(task, resources.registry)
    checkpoints = resources.caches.checkpoints(task.fingerprint)
    if existing:
        shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed after it had registered the version
        why = "nothing changed since this version was trained"
        run_id, files = existing.mlflow_run_id, {"learning_curves": lineage.CURVES_FILE}
        pictures = describe_once(
            resources.delta_tables,
            framework.asset,
            lambda: logged_pictures(resources.tracking, run_id, files, CURVES),
            tables=[],
            values=[run_id],
        )
        return to_materialize_result(existing, resources.tracking, {"trained": False, "why": why, **pictures})
    embedded = exported_backbone(task, resources.caches) is not None
    seconds = expected_seconds(framework, task.plan, task.training.rows, task.validation.rows, embedded=embedded)
    what = announcement(task.plan, task.training.rows, task.validation.rows)
    dg.get_dagster_logger().info(f"{what}: {duration(seconds)}")
    with resources.ranks(task.plan, framework) as run, resources.tracking.run_for(framework.asset) as mlflow_run_id:
        origin = lineage.to_origin(resources.delta_tables, dagster_run_id, framework.asset)
        embeddings = embedding_files(resources.delta_tables.as_of(origin.table_versions))
        locations = OutputLocations(resources.tracking.tracking_uri, mlflow_run_id, embeddings, checkpoints)
        logged = train_and_log(task, resources, run, locations, origin)
        marks = {
            FINGERPRINT: task.fingerprint,
            FILES_DIGEST: resources.registry.files_digest(logged.classifier),
        }
        settings = config.resolved().model_dump()  # a later release may give an effort other defaults
        tags = {**lineage.to_tags(task, logged.trained, origin, settings), **marks}
        version = resources.registry.register(logged.classifier, mlflow_run_id, tags)
    shutil.rmtree(checkpoints, ignore_errors=True)
    described = with_picture_files(to_metadata(logged), resources.delta_tables.picture_home)
    return to_materialize_result(version, resources.tracking, {"trained": True, **described})


def trained_before(task: Task, registry: ModelRegistry) -> ModelVersion | None:
    """The version of the same task; None if there is none, or if it must be trained again.

    It must if weights that it had to do without are there now, or if its files are lost.
    """
    found = registry.with_tag(FINGERPRINT, task.fingerprint)
    if found is None:
        return None
    plan = task.plan
    had_none = plan.backbone == "auto" and found.tags.get("backbone") == UNTRAINED
    if had_none and has_weights_at_hand(plan.architecture, task.framework, plan.backbone):
        return None
    if not registry.has_files(found):
        dg.get_dagster_logger().warning(
            f"the files of version {found.version}, which was trained with these settings on these images, are gone: "
            "training it again"
        )
        return None
    return found


@dataclass(frozen=True)
class LoggedTraining:
    """What a training logged to its MLflow run."""

    trained: TrainingResult
    curves: bytes  # a PNG
    classifier: str  # the URI of a model that can be registered


def train_and_log(
    task: Task,
    resources: TrainingResources,
    run: Run,
    locations: OutputLocations,
    origin: lineage.Origin,
) -> LoggedTraining:
    """Train, and log the task, its inputs, the outcome and the classifier to the open MLflow run."""
    lineage.log_task(task, origin, resources.delta_tables)
    trained = run_training(task, run, replace(locations, exported=exported_backbone(task, resources.caches)))
    if trained.network is None:
        raise RuntimeError("rank 0 returned no network")
    curves = learning_curves(trained.history)
    lineage.log_outcome(trained, curves)
    classifier = TrainedClassifier(
        network=trained.network,
        labels=task.labels,
        framework=task.framework,
        backbone=task.plan.architecture,
        color=task.plan.color,
        reading=task.plan.reading,
        thresholds=trained.thresholds and trained.thresholds.by_label,
        training_embeddings=trained.training_embeddings,
        head=trained.head,
    )
    uri = log_classifier(
        classifier,
        str(trained.model_uri),
        tracking_uri=locations.tracking_uri,
        mlflow_run_id=locations.mlflow_run_id,
    )
    return LoggedTraining(trained, curves, uri)


def exported_backbone(task: Task, caches: PetastormCaches) -> EmbeddingNetwork | None:
    """The task's backbone as ONNX, if `image_embeddings` exported it."""
    plan = task.plan
    if is_external(plan.backbone_name):
        return None
    exporter = plan.architecture.exporter(task.framework)
    export = Export(exporter, plan.backbone_name, plan.backbone, task.backbone)
    return recorded_network(caches.root, export, plan.color, plan.reading)


def run_training(task: Task, run: Run, locations: OutputLocations) -> TrainingResult:
    """Train on the ranks; the result for all of them. An interrupted training resumes after its last epoch."""
    with task.training.in_use(), task.validation.in_use():
        train = FRAMEWORKS[task.framework].training.train
        return combined(run(train, task.training.converter(), task.validation.converter(), task.plan, locations))


def combined(ranks: Sequence[TrainingResult]) -> TrainingResult:
    """Rank 0's result, with the sums of all ranks for the images that they embedded."""
    embedded_images = sum(rank.embedded_images for rank in ranks)
    return replace(
        ranks[0], embedded_images=embedded_images, images_per_second=sum(rank.images_per_second for rank in ranks)
    )


def to_metadata(logged: LoggedTraining) -> dict[str, dg.MetadataValue | float | int | str]:
    """A training's metrics and learning curves for Dagster."""
    trained = logged.trained
    return {
        **trained.abstention,
        "validation_accuracy": trained.validation_accuracy,
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "backbone": trained.backbone,
        "processes": trained.size,
        "precision": trained.precision,
        "steps_per_epoch": trained.steps,
        "embedded_images": trained.embedded_images,
        "embedded_images_per_second": round(trained.images_per_second, 1),
        "seconds": round(trained.seconds, 1),
        "seconds_to_first_step": round(trained.seconds_to_first_step, 1),
        "learning_curves": dg.MetadataValue.md(picture_markdown(logged.curves, CURVES)),
    }


def to_materialize_result(
    version: ModelVersion, tracking: MlflowTracking, metadata: dict[str, dg.MetadataValue | float | int | str]
) -> dg.MaterializeResult:
    """The version and its origin, as the asset's metadata."""
    return dg.MaterializeResult(
        metadata={
            "model_version": version.version,
            "model_uri": version.uri,
            "mlflow_run_id": version.mlflow_run_id,
            "mlflow_run": dg.MetadataValue.url(tracking.run_url(version.mlflow_run_id)),
            "labels": ", ".join(version.labels),
            "backbone": version.tags.get("backbone", "unknown"),
            **metadata,
        },
        data_version=dg.DataVersion(str(version.version)),
    )
