"""One rank's part in a training: embeddings, the head on them, the blocks below it where asked for."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import numpy as np

from image_assets.models.backbones import name_in_digests
from image_assets.models.embeddings import (
    Activations,
    AugmentedImages,
    EmbeddingStore,
    PrecomputedInputs,
    Standardisation,
    precompute_inputs,
    standardisation,
)
from image_assets.models.epochs import (
    Checkpoints,
    Collective,
    Network,
    Phase,
    Progress,
    Source,
    State,
    run_epochs,
    state_digest,
)
from image_assets.models.training_images import Decoding, Shard
from image_assets.models.training_plan import OutputLocations, Schedule, TrainingPlan, TrainingResult
from resources.progress import LINE_SECONDS


def epoch_reporter(
    framework: str, *, tracking_uri: str, mlflow_run_id: str
) -> Callable[[str, int, dict[str, float]], None]:
    """A function that tells an epoch's figures (of a phase, with so many epochs) to the terminal and to MLflow."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri)
    phases: dict[str, str] = {}
    reported_at = -math.inf

    def report(phase: str, epochs: int, figures: dict[str, float]) -> None:
        nonlocal reported_at
        epoch, now = int(figures["epoch"]), int(time.time() * 1000)
        if epoch in (1, epochs) or time.monotonic() - reported_at >= LINE_SECONDS:
            logger.info("%s %s %s", framework, phase.replace("_", " "), epoch_line(epochs, figures))
            reported_at = time.monotonic()
        # The head's figures and those of the blocks below it are curves of their own.
        prefix = phases.setdefault(phase, f"{phase}_" if phases else "")
        client.log_batch(
            mlflow_run_id,
            [Metric(f"{prefix}{key}", value, now, epoch) for key, value in figures.items() if key != "epoch"],
        )

    return report


def epoch_line(epochs: int, figures: dict[str, float]) -> str:
    """An epoch's figures on a line, and how long those after it take at most: a training may stop before them."""
    names = {"loss": "loss", "accuracy": "accuracy", "validation": "validation_accuracy"}
    parts = [f"epoch {figures['epoch']:.0f}/{epochs}", *(f"{name} {figures[key]:.3f}" for name, key in names.items())]
    left = round((epochs - figures["epoch"]) * figures["seconds"])
    return "  ".join([*parts, f"at most {timedelta(seconds=left)} left"] if left else parts)


def no_report(phase: str, epochs: int, figures: dict[str, float]) -> None:
    """Say nothing: only rank 0 reports."""


if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

EMBEDDING_CODE = "1"  # raise it when the same weights and pixels would give other embeddings

WEIGHTS_FILE = "trained_weights.safetensors"  # an artifact of the MLflow run

logger = logging.getLogger(__name__)


class Classifier(Network, Protocol):
    """A network whose frozen part can be chosen, and that becomes a model in MLflow."""

    framework: str
    precision: str

    def freeze(self, blocks: int | None, schedule: Schedule) -> Activations:
        """Leave the first blocks as they are, or (None) all but the head: what they make of pixels is trained on."""
        ...

    def set_label_weights(self, weights: np.ndarray) -> None:
        """Let images of a label count for more or less in the loss: (labels,)."""
        ...

    def fold_standardisation_into_head(self, by: Standardisation) -> None:
        """Let the head, trained on standardised embeddings, give the same for embeddings as they come."""
        ...

    def backbone_weights(self) -> State:
        """The weights of the whole backbone, as they are."""
        ...

    def log(self, locations: OutputLocations) -> str:
        """Log the model in its own flavor; its URI."""
        ...


def train_on_rank(
    network: Classifier,
    collective: Collective,
    training: "SparkDatasetConverter",
    validation: "SparkDatasetConverter",
    plan: TrainingPlan,
    locations: OutputLocations,
    origin: str,
) -> TrainingResult:
    """Train on this rank's shards, together with the other ranks; rank 0 logs metrics and model to MLflow."""
    began = time.monotonic()
    shards = [to_shard(converter, plan, collective) for converter in (training, validation)]
    report = no_report
    if collective.rank == 0:
        report = epoch_reporter(
            network.framework, tracking_uri=locations.tracking_uri, mlflow_run_id=locations.mlflow_run_id
        )
    work = RankTraining(network, collective, shards[0], shards[1], plan, locations, report)
    head = work.train_head()
    first_step = work.first_step - began
    tuned = work.fine_tune() if plan.trainable != "head" else None
    weights = network.weights()
    model_uri = log_weights(network, weights, locations) if collective.rank == 0 else None
    collective.sum(np.zeros(1))  # an MLflow that fails on rank 0 fails the training
    phases = [progress for progress in (head, tuned) if progress]
    return TrainingResult(
        rank=collective.rank,
        size=collective.size,
        model_uri=model_uri,
        backbone=origin,
        history=tuple(figures for progress in phases for figures in progress.history),
        best_epoch=sum(progress.epoch for progress in phases[:-1]) + phases[-1].best_epoch,
        steps=work.steps,
        images_per_second=work.images_per_second,
        embedded_images=work.embedded_images,
        seconds=time.monotonic() - began,
        seconds_to_first_step=first_step,
        precision=network.precision,
        weights_digest=state_digest(weights),
    )


def log_weights(network: Classifier, weights: State, locations: OutputLocations) -> str:
    """Log the trained weights as they are, to compare them, and the model; the model's URI."""
    from mlflow import MlflowClient
    from safetensors.numpy import save_file

    with TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS_FILE
        save_file(weights, file)
        MlflowClient(locations.tracking_uri).log_artifact(locations.mlflow_run_id, str(file))
    return network.log(locations)


def to_shard(converter: "SparkDatasetConverter", plan: TrainingPlan, collective: Collective) -> Shard:
    """What this rank reads of a cache."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    return Shard(
        converter,
        Decoding(plan.architecture.side_pixels, plan.content, plan.color),
        collective.rank,
        collective.size,
        threads,
    )


class RankTraining:
    """The phases of a training, one after the other, on one network."""

    def __init__(
        self,
        network: Classifier,
        collective: Collective,
        training: Shard,
        validation: Shard,
        plan: TrainingPlan,
        locations: OutputLocations,
        report: Callable[[str, int, dict[str, float]], None],
    ) -> None:
        self._network = network
        self._collective = collective
        self._training = training
        self._validation = validation
        self._plan = plan
        self._checkpoints = Checkpoints(locations.checkpoints)
        self._embeddings = locations.embeddings
        self._report = report
        self.steps = 0
        self.first_step = 0.0
        self.images_per_second = 0.0
        self.embedded_images = 0

    def train_head(self) -> Progress:
        """Train the head on embeddings; those that are known are not computed again."""
        activations = self._counted(self._network.freeze(None, self._plan.head))
        folder = Path(self._embeddings) / embeddings_name(self._network, self._plan, version(self._network.framework))
        started = time.monotonic()
        training, validation = self._precompute_both(activations, EmbeddingStore(str(folder)))
        self.images_per_second = self.embedded_images / (time.monotonic() - started)
        everywhere = self._collective.sum(np.array([self.images_per_second]))[0]
        if self._collective.rank == 0:
            logger.info(
                "%s embedding  %.0f images/s on %s process(es)",
                self._network.framework,
                everywhere,
                self._collective.size,
            )
        if self._plan.class_weights:
            self._network.set_label_weights(label_weights(training, self._plan.labels, self._collective))
        by = standardisation(training, self._collective)
        training, validation = training.standardised(by), validation.standardised(by)
        progress = self._run("head", self._plan.head, training, validation)
        self._network.fold_standardisation_into_head(by)
        return progress

    def fine_tune(self) -> Progress:
        """Train the blocks that are not frozen with the head, from the head that embeddings gave.

        Kumar et al., Fine-Tuning can Distort Pretrained Features (2022): a head that fits comes first.
        """
        activations = self._network.freeze(self._plan.frozen_blocks, self._plan.fine_tuning)
        training: Source
        if self._plan.augmentation:
            training = AugmentedImages(self._training, activations, self._plan.batch_size, self._plan.seed)
            validation = self._precompute(self._validation, activations)
        else:
            training, validation = self._precompute_both(activations)
        return self._run("fine_tuning", self._plan.fine_tuning, training, validation)

    def _run(self, name: str, schedule: Schedule, training: Source, validation: PrecomputedInputs) -> Progress:
        self.steps = training.steps
        self.first_step = self.first_step or time.monotonic()
        phase = Phase(name, schedule, self._plan.seed, self._report)
        progress = run_epochs(
            self._network, self._collective, training, validation, phase=phase, checkpoints=self._checkpoints
        )
        if self._collective.rank == 0:
            logger.info(
                "%s %s best of %s epochs: %s, validation %.3f",
                self._network.framework,
                name.replace("_", " "),
                progress.epoch,
                progress.best_epoch,
                progress.best[0],
            )
        return progress

    def _precompute_both(
        self, activations: Activations, store: EmbeddingStore | None = None
    ) -> tuple[PrecomputedInputs, PrecomputedInputs]:
        return self._precompute(self._training, activations, store), self._precompute(
            self._validation, activations, store
        )

    def _precompute(
        self, shard: Shard, activations: Activations, store: EmbeddingStore | None = None
    ) -> PrecomputedInputs:
        plan = self._plan
        return precompute_inputs(
            shard, activations, self._collective, batch_size=plan.batch_size, seed=plan.seed, store=store
        )

    def _counted(self, activations: Activations) -> Activations:
        def counted(pixels: np.ndarray) -> np.ndarray:
            self.embedded_images += len(pixels)
            return activations(pixels)

        return counted


def embeddings_name(network: Classifier, plan: TrainingPlan, library: str) -> str:
    """The folder of a backbone's embeddings: `<framework>-<hash of everything that they depend on>`."""
    parts = [EMBEDDING_CODE, state_digest(network.backbone_weights()), plan.content, plan.color, network.precision]
    # `library` is the framework's version: another one may compute the same layers differently.
    identity = "/".join([*parts, library, str(plan.architecture.blocks), *name_in_digests(plan.architecture)])
    return f"{network.framework}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def label_weights(images: PrecomputedInputs, labels: int, collective: Collective) -> np.ndarray:
    """For each label the inverse of its share of the images of all ranks, 1 on average over the images.

    "Balanced", as scikit-learn's `compute_class_weight` has it.
    """
    counts = collective.sum(np.bincount(images.label_indexes, minlength=labels))
    return counts.sum() / (labels * np.maximum(counts, 1))
