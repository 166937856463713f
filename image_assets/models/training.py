"""From caches to a registered version: the settings of a training and its steps, the same for every framework."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import Field, model_validator

from image_assets.data.image_splits import training_labels
from image_assets.data.sound_splits import require_sound_splits
from image_assets.data.training_cache import existing_cache, find_or_write_cache
from image_assets.images.charts import learning_curves, picture_markdown
from image_assets.models import lineage
from image_assets.models.backbone_weights import how_to_get_weights, require_packages
from image_assets.models.backbones import (
    BACKBONES,
    CURRENT_BACKBONE,
    Backbone,
    can_be_fine_tuned,
    is_external,
    name_in_digests,
    names_of_backbones,
    require_supported,
    to_backbone,
)
from image_assets.models.efforts import DEFAULTS, Effort, announcement, defaults_of, duration, expected_seconds
from image_assets.models.frameworks import FRAMEWORKS, Framework
from image_assets.models.lineage import logged_pictures
from image_assets.models.logged_models import log_classifier
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.training_plan import (
    Distributor,
    HeadFit,
    OutputLocations,
    Precision,
    Schedule,
    Trainable,
    TrainingPlan,
    TrainingResult,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import runs_locally
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.delta.unchanged import describe_once
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from resources.training import BackboneWeights, TrainingProcesses

TRAINING_CODE = "2"  # raise it if the same settings would give another model
CURVES = "loss and accuracy by epoch"
FINGERPRINT = "training_fingerprint"


def distributors_by_framework() -> str:
    """The distributors that each framework can use, as a sentence."""
    choices = (f"{of.title}: {' or '.join(f'`{name}`' for name in of.distributors)}" for of in FRAMEWORKS.values())
    return f"{'; '.join(choices)}."


class TrainingConfig(dg.Config):
    """The settings of one training, the same for every framework."""

    backbone: str = Field(
        default=CURRENT_BACKBONE.name,
        description="The pretrained network below the head: "
        f"{', '.join(f'`{name}`' for name in BACKBONES)}; or, to train only a head on it, `timm:<name>` for a network "
        "of the package timm, or `onnx:<file>`.",
    )
    effort: Effort = Field(
        default="quick",
        description="How long to train for a better model. `quick`: only the last layer, in closed form. `good`: also "
        "the backbone's last blocks, for some minutes. `best`: more of them, for longer. It decides settings that are "
        "not set.",
    )
    # Dagster has no optional `Literal`, so that this one has a value for "not set".
    trainable: Literal["auto", Trainable] = Field(
        default="auto",
        description="What to train. `head`: only the last layer, on embeddings that are computed once. `top_blocks`: "
        "the head, then also the backbone's last blocks. `all`: the head, then the whole network. "
        f"`auto`: what the effort says. {defaults_of('trainable')}",
    )
    top_blocks: int | None = Field(
        default=None,
        gt=0,
        description="How many of the backbone's blocks to train, fewer than it has "
        f"({', '.join(f'{of.name}: {of.blocks}' for of in BACKBONES.values())}). {defaults_of('top_blocks')}",
    )
    augmentation: bool | None = Field(
        default=None,
        description="Randomly crop and mirror images in each epoch of fine-tuning; slower. "
        f"{defaults_of('augmentation')}",
    )
    augmented_views: int | None = Field(
        default=None,
        ge=0,
        description="How many augmented views of each image to compute and store; later epochs use them again, which "
        f"takes less time. 0: another one in each epoch. {defaults_of('augmented_views')}",
    )
    head_fit: HeadFit = Field(
        default="closed_form",
        description="How the head is trained. `closed_form`: ridge regression with a strength from cross-validation, "
        "and calibrated probabilities. `epochs`: by gradient descent, as in earlier releases, without calibration.",
    )
    refit: bool | None = Field(
        default=None,
        description="After its figures are known, fit the head again on training and validation images together; the "
        "version has this head. Only for a head in closed form, where it is the default: it takes no time there.",
    )
    epochs: int = Field(default=30, gt=0, description="Maximum number of passes over the embeddings, with `epochs`.")
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="Learning rate of the head for one process, with `epochs`; multiplied by the number of processes.",
    )
    weight_decay: float = Field(default=5.0, ge=0, description="Weight decay of AdamW for the head, with `epochs`.")
    dropout: float = Field(
        default=0.5, ge=0, lt=1, description="Share of an embedding's features dropped in each step, with `epochs`."
    )
    fine_tuning_epochs: int | None = Field(
        default=None,
        gt=0,
        description=f"Maximum number of passes over the images in fine-tuning. {defaults_of('fine_tuning_epochs')}",
    )
    fine_tuning_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of fine-tuning for one process; multiplied by the number of processes. "
        f"{defaults_of('fine_tuning_learning_rate')}",
    )
    averaged_epochs: int | None = Field(
        default=None,
        gt=0,
        description="Over how many of its last epochs fine-tuning averages the weights. "
        f"{defaults_of('averaged_epochs')}",
    )
    fine_tuning_weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of AdamW in fine-tuning.")
    fine_tuning_dropout: float = Field(default=0.2, ge=0, lt=1, description="Dropout in fine-tuning.")
    warmup_epochs: int = Field(
        default=1, ge=0, description="Epochs in which the learning rate grows from that of one process to that of all."
    )
    patience: int = Field(default=10, gt=0, description="Stop after this many epochs without improvement.")
    batch_size: int = Field(default=32, gt=0, description="Images per step and process.")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="Probability spread evenly over all labels.")
    class_weights: bool = Field(
        default=True, description="Weight images so that rare labels count as much as frequent ones."
    )
    minimum_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The version abstains below this probability: `label` is null and `abstained` true. By default it "
        "answers for every image.",
    )
    minimum_precision: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For each label, abstain below the lowest probability from which on this share of the predictions "
        "for validation images is correct, such as 0.95. The version stores the probabilities.",
    )
    precision: Precision = Field(
        default="auto", description="`float32`, `bfloat16`, or `auto`: bfloat16 on GPUs that support it, else float32."
    )
    distributor: Distributor = Field(
        default="horovod",
        description=f"What starts the processes. {distributors_by_framework()}",
    )
    seed: int = Field(default=0, ge=0, description="Seed for shuffling, cropping and dropout.")

    @model_validator(mode="after")
    def _trains_what_the_backbone_has(self) -> "TrainingConfig":
        if self.backbone not in BACKBONES and not is_external(self.backbone):
            raise ValueError(f"backbone is {self.backbone!r}: expected one of {names_of_backbones()}")
        trainable = self.resolved().trainable
        if trainable == "head":
            return self
        if not can_be_fine_tuned(self.backbone):
            raise ValueError(
                f"effort is {self.effort!r} and trainable is {trainable!r}, but {self.backbone} can only be used as it "
                f"is: set trainable to 'head', or choose one of {', '.join(filter(can_be_fine_tuned, BACKBONES))}"
            )
        blocks = BACKBONES[self.backbone].blocks
        if trainable == "top_blocks" and self.top_blocks and self.top_blocks >= blocks:
            raise ValueError(
                f"top_blocks is {self.top_blocks}: expected fewer than the {blocks} blocks of {self.backbone}; to "
                "train them all, set trainable to 'all'"
            )
        return self

    @model_validator(mode="after")
    def _augments_what_it_trains(self) -> "TrainingConfig":
        if self.augmentation and self.resolved().trainable == "head":
            raise ValueError(
                "augmentation is true and trainable is 'head', but the head is trained on embeddings that are computed "
                "once: set effort to 'good', trainable to 'top_blocks' or 'all', or augmentation to false"
            )
        return self

    @model_validator(mode="after")
    def _refits_in_closed_form(self) -> "TrainingConfig":
        if self.refit and not self._fits_head_only():
            raise ValueError(
                f"refit is true, trainable is {self.resolved().trainable!r} and head_fit is {self.head_fit!r}, but "
                "only a head in closed form is fitted again: set trainable to 'head' and head_fit to 'closed_form', "
                "or refit to false"
            )
        return self

    def _fits_head_only(self) -> bool:
        trainable = DEFAULTS[self.effort]["trainable"] if self.trainable == "auto" else self.trainable
        return trainable == "head" and self.head_fit == "closed_form"

    def resolved(self) -> "TrainingConfig":
        """The same settings, with the defaults of `effort` for those that are not set."""
        # A head needs no further effort: it is the same version whichever one was asked for.
        defaults = DEFAULTS["quick" if self.trainable == "head" else self.effort]
        defaults = {**defaults, "refit": self._fits_head_only()}
        if self.backbone in BACKBONES:
            defaults["top_blocks"] = min(defaults["top_blocks"], BACKBONES[self.backbone].blocks - 1)
        unset = {name: of for name, of in defaults.items() if getattr(self, name) in (None, "auto")}
        return self.model_copy(update=unset)

    def plan(self, labels: int, weights: str, caches: PetastormCaches) -> TrainingPlan:
        """The settings as ranks receive them.

        Args:
            labels: The number of labels.
            weights: Where the backbone's weights come from, a source of `BackboneWeights`.
            caches: The caches that will be read.
        """
        head = Schedule(
            self.epochs, self.learning_rate, self.warmup_epochs, self.patience, self.weight_decay, self.dropout
        )
        own = self.resolved().model_dump()
        fine_tuning = Schedule(
            own["fine_tuning_epochs"],
            own["fine_tuning_learning_rate"],
            min(self.warmup_epochs, own["fine_tuning_epochs"] - 1),
            self.patience,
            self.fine_tuning_weight_decay,
            self.fine_tuning_dropout,
            own["averaged_epochs"],
        )
        names = ("trainable", "top_blocks", "augmentation", "augmented_views", "batch_size", "label_smoothing")
        names += ("class_weights", "head_fit", "refit", "minimum_probability", "minimum_precision")
        others = {name: own[name] for name in (*names, "precision", "distributor", "seed")}
        content = {name: getattr(caches, name) for name in ("content", "color", "page", "pixel_limit")}
        return TrainingPlan(
            labels=labels,
            backbone=weights,
            head=head,
            fine_tuning=fine_tuning,
            backbone_name=self.backbone,
            **content,
            **others,
        )


@dataclass(frozen=True)
class TrainingResources:
    """The resources of a training."""

    delta_tables: DeltaTables
    caches: PetastormCaches
    processes: TrainingProcesses
    backbone: BackboneWeights
    tracking: MlflowTracking
    registry: ModelRegistry


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
        return sha256(Path(own.model).read_bytes()).hexdigest()
    try:
        return weights.identity(own.weight_files)
    except FileNotFoundError as error:
        if own.packages_hold_weights:
            return "imagenet"
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
    existing = resources.registry.with_tag(FINGERPRINT, task.fingerprint)
    if existing:
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
    seconds = expected_seconds(framework, task.plan, task.training.rows, task.validation.rows)
    dg.get_dagster_logger().info(f"{announcement(task.plan, task.training.rows)}: {duration(seconds)}")
    checkpoints = resources.caches.checkpoints(task.fingerprint)
    with resources.tracking.run_for(framework.asset) as mlflow_run_id:
        origin = lineage.to_origin(resources.delta_tables, dagster_run_id, framework.asset)
        embeddings = embedding_files(resources.delta_tables.as_of(origin.table_versions))
        locations = OutputLocations(resources.tracking.tracking_uri, mlflow_run_id, embeddings, checkpoints)
        logged = train_and_log(task, resources, locations, origin)
        marks = {
            FINGERPRINT: task.fingerprint,
            FILES_DIGEST: resources.registry.files_digest(logged.classifier),
        }
        settings = config.resolved().model_dump()  # a later release may give an effort other defaults
        tags = {**lineage.to_tags(task, logged.trained, origin, settings), **marks}
        version = resources.registry.register(logged.classifier, mlflow_run_id, tags)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return to_materialize_result(version, resources.tracking, {"trained": True, **to_metadata(logged)})


@dataclass(frozen=True)
class LoggedTraining:
    """What a training logged to its MLflow run."""

    trained: TrainingResult
    curves: bytes  # a PNG
    classifier: str  # the URI of a model that can be registered


def train_and_log(
    task: Task, resources: TrainingResources, locations: OutputLocations, origin: lineage.Origin
) -> LoggedTraining:
    """Train, and log the task, its inputs, the outcome and the classifier to the open MLflow run."""
    lineage.log_task(task, origin, resources.delta_tables)
    trained = run_training(task, resources, locations)
    curves = learning_curves(trained.history)
    lineage.log_outcome(trained, curves)
    classifier = log_classifier(
        model_uri=str(trained.model_uri),
        labels=task.labels,
        framework=task.framework,
        color=task.plan.color,
        reading=task.plan.reading,
        backbone=task.plan.architecture,
        thresholds=trained.thresholds and trained.thresholds.by_label,
        training_embeddings=trained.training_embeddings,
        tracking_uri=locations.tracking_uri,
        mlflow_run_id=locations.mlflow_run_id,
        head=trained.head,
    )
    return LoggedTraining(trained, curves, classifier)


def run_training(task: Task, resources: TrainingResources, locations: OutputLocations) -> TrainingResult:
    """Train on the ranks; rank 0's result. An interrupted training resumes after its last epoch."""
    with ExitStack() as stack:
        for cache in (task.training, task.validation):
            stack.enter_context(cache.in_use())
        # Starting Spark takes longer than fitting a head, and ranks on one machine need nothing of it.
        alone = task.plan.distributor == "horovod" and runs_locally(resources.delta_tables.pyspark, 0)
        ranks = resources.processes.run(
            None if alone else resources.delta_tables.spark,
            task.plan.distributor,
            FRAMEWORKS[task.framework].training.train,
            task.training.converter(),
            task.validation.converter(),
            task.plan,
            locations,
        )
    return ranks[0]


def to_metadata(logged: LoggedTraining) -> dict[str, dg.MetadataValue | float | int | str]:
    """A training's metrics and learning curves for Dagster."""
    trained = logged.trained
    thresholds = trained.thresholds
    abstaining = {"validation_coverage": thresholds.coverage} if thresholds else {}
    if thresholds and thresholds.precision is not None:
        abstaining["validation_precision"] = thresholds.precision
    return {
        **abstaining,
        "validation_accuracy": trained.history[trained.best_epoch - 1]["validation_accuracy"],
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "backbone": trained.backbone,
        "processes": trained.size,
        "precision": trained.precision,
        "steps_per_epoch": trained.steps,
        "embedded_images": trained.embedded_images * trained.size,
        "embedded_images_per_second": round(trained.images_per_second * trained.size, 1),
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
            "labels": ", ".join(json.loads(version.tags["labels"])),
            "backbone": version.tags["backbone"],
            **metadata,
        },
        data_version=dg.DataVersion(str(version.version)),
    )
