"""One rank's part of a training: embed the images, train the head, fine-tune blocks, and refit on both splits."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.calibration import Thresholds, choose_thresholds, fit_scale, log_softmax
from image_assets.models.classifier import Classifier
from image_assets.models.embedding_networks import backbone_identity, digest_of
from image_assets.models.embeddings import (
    Activations,
    AugmentedImages,
    AugmentedViews,
    JoinedInputs,
    JoinedViews,
    PrecomputedInputs,
    StoredEmbeddings,
    precompute_inputs,
    standardization,
)
from image_assets.models.epochs import (
    Batch,
    Checkpoints,
    Collective,
    Phase,
    Progress,
    Source,
    evaluated,
    gathered,
    run_epochs,
    state_digest,
    to_score,
)
from image_assets.models.novelty import MAX_STORED, TrainingEmbeddings
from image_assets.models.ridge_head import fit_ridge_head, refit_ridge_head
from image_assets.models.training_images import Decoding, Shard, rebatched
from image_assets.models.training_output import epoch_reporter, log_weights, no_report, to_onnx
from image_assets.models.training_plan import OutputLocations, Schedule, TrainingPlan, TrainingResult

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter


logger = logging.getLogger(__name__)


def train_on_rank(
    network: Classifier,
    collective: Collective,
    training: "SparkDatasetConverter",
    validation: "SparkDatasetConverter",
    plan: TrainingPlan,
    locations: OutputLocations,
    origin: str,
) -> TrainingResult:
    """Train on this rank's shards, together with the other ranks; rank 0 logs metrics and the model to MLflow."""
    began = time.monotonic()
    shards = [to_shard(converter, plan, collective) for converter in (training, validation)]
    report = no_report
    if collective.rank == 0:
        report = epoch_reporter(
            network.framework, tracking_uri=locations.tracking_uri, mlflow_run_id=locations.mlflow_run_id
        )
    work = RankTraining(network, collective, shards[0], shards[1], plan, locations, report, origin)
    head = work.train_head()
    first_step = work.first_step - began
    tuned = work.fine_tune(head) if plan.trainable != "head" else None
    trained = tuned or head
    thresholds = work.thresholds(trained.validation) if plan.abstains else None
    novelty = work.with_threshold(work.training_embeddings(trained.training), trained.validation)
    if plan.refit:
        trained.refit()
    if plan.refit and tuned:
        novelty = work.training_embeddings(tuned.training).rescaled(novelty)
    weights = network.weights()
    model_uri = content = None
    if collective.rank == 0:
        model_uri = log_weights(network, weights, locations)
        content = to_onnx(network, "" if tuned else work.stored.backbone, plan.architecture.side_pixels, locations)
    collective.sum(np.zeros(1))  # wait for rank 0: if logging fails there, every rank fails
    phases = [part.progress for part in (head, tuned) if part]
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
        network=content,
        thresholds=thresholds,
        training_embeddings=novelty if collective.rank == 0 else None,
        embedding_backbone="" if tuned else work.stored.backbone,
        head=None if tuned else network.head(),
    )


def to_shard(converter: "SparkDatasetConverter", plan: TrainingPlan, collective: Collective) -> Shard:
    """This rank's shard of a cache."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    return Shard(
        (converter,),
        Decoding(plan.architecture.side_pixels, plan.content, plan.color, reading=plan.reading),
        collective.rank,
        collective.size,
        threads,
    )


@dataclass(frozen=True)
class TrainedPart:
    """A trained part of a network: its head, or its head and some blocks.

    Attributes:
        progress: Of its training.
        training: The training images, not augmented, as inputs of the part; fine-tuning may compute them anew.
        validation: The validation images, likewise.
        label_indexes: Of the training and validation images of this rank.
        refit: Trains the part again, on both splits. Call it last: from then on the validation images say nothing about
            the network. For the same reason, penalty and scale remain those of the first training.
    """

    progress: Progress
    training: Callable[[], Iterable[Batch]]
    validation: PrecomputedInputs
    label_indexes: np.ndarray
    refit: Callable[[], None]


class RankTraining:
    """The phases of a training on one network: `train_head`, then `fine_tune`."""

    def __init__(
        self,
        network: Classifier,
        collective: Collective,
        training: Shard,
        validation: Shard,
        plan: TrainingPlan,
        locations: OutputLocations,
        report: Callable[[str, int, dict[str, float]], None],
        origin: str,
    ) -> None:
        self._network = network
        self._collective = collective
        self._training = training
        self._validation = validation
        self._plan = plan
        weights = digest_of(network.backbone_weights(), plan.architecture, network.framework, origin)
        self._checkpoints = Checkpoints(locations.checkpoints, sha256(weights.encode()).hexdigest())
        backbone = backbone_identity(network.framework, plan.architecture, weights, plan.color, plan.reading)
        self.stored = StoredEmbeddings(locations.embeddings, backbone)
        self._report = report
        self.steps = 0
        self.first_step = 0.0
        self.images_per_second = 0.0
        self.embedded_images = 0

    def train_head(self) -> TrainedPart:
        """Train the head on embeddings: those in `image_embeddings`, and what it lacks, computed in memory."""
        activations = self._counted(self._network.freeze(None, self._plan.head))
        started = time.monotonic()
        training, validation = (
            self._precompute(shard, activations, self.stored) for shard in (self._training, self._validation)
        )
        self.images_per_second = self.embedded_images / (time.monotonic() - started)
        everywhere = self._collective.sum(np.array([self.images_per_second]))[0]
        if everywhere and self._collective.rank == 0:  # otherwise `image_embeddings` had all of them
            logger.info("%s embedding  %.0f images/s", self._network.framework, everywhere)
        weights = self._label_weights(training.label_indexes)
        self._network.set_label_weights(weights)
        both = JoinedInputs((training, validation))
        if self._plan.head_fit == "closed_form":
            progress, refit = self._fit_head(training, validation, weights)
        else:
            progress, refit = self._run_head(training, validation), _not_refitted
        return TrainedPart(progress, lambda: training, validation, both.label_indexes, refit)

    def _run_head(self, training: PrecomputedInputs, validation: PrecomputedInputs) -> Progress:
        """Train the head for some epochs."""
        by = standardization(training, self._collective)
        progress = self._run("head", self._plan.head, training.standardized(by), validation.standardized(by))
        # In float64: w·(x - m)/d + b = (w/d)·x + (b - (w/d)·m), and small deviations amplify rounding.
        kernel, bias = self._network.head()
        kernel = kernel / by.deviation[:, None]
        self._network.set_head(kernel, bias - by.mean @ kernel)
        return progress

    def _fit_head(
        self, training: PrecomputedInputs, validation: PrecomputedInputs, weights: np.ndarray
    ) -> tuple[Progress, Callable[[], None]]:
        """Fit the head in closed form, which counts as one epoch; also returns how to fit it again."""
        started = time.monotonic()
        self.steps, self.first_step = training.steps, self.first_step or started
        head = fit_ridge_head(training, validation, weights, self._collective)
        self._network.set_head(head.kernel, head.bias)
        scale = self._calibrate(validation)
        figures = {"epoch": 1.0}
        for prefix, images in (("", training), ("validation_", validation)):
            figures |= evaluated(self._network, self._collective, images, prefix)
        figures["seconds"] = time.monotonic() - started
        self._report("head", 1, figures)

        def refit() -> None:
            both = JoinedInputs((training, validation))
            again = refit_ridge_head(both, head.strength, self._label_weights(both.label_indexes), self._collective)
            self._network.set_head(again.kernel * scale, again.bias * scale)

        progress = Progress([figures], to_score(figures), best_epoch=1, best_weights=self._network.weights())
        return progress, refit

    def _label_weights(self, label_indexes: np.ndarray) -> np.ndarray:
        if not self._plan.class_weights:
            return np.ones(self._plan.labels)
        return label_weights(label_indexes, self._plan.labels, self._plan.class_weights_power, self._collective)

    def _scale_head(self, scale: float) -> None:
        kernel, bias = self._network.head()
        self._network.set_head(kernel * scale, bias * scale)

    def _calibrate(self, validation: Iterable[Batch]) -> float:
        """Scale the head so that its softmax is calibrated on the validation images of all ranks; the scale."""
        scale = fit_scale(*self._logits(validation))
        self._scale_head(scale)
        return scale

    def thresholds(self, validation: Iterable[Batch]) -> Thresholds:
        """The probabilities below which the version abstains, chosen on the validation images of all ranks."""
        logits, label_indexes = self._logits(validation)
        return choose_thresholds(
            np.exp(log_softmax(logits)),
            label_indexes,
            precision=self._plan.minimum_precision,
            minimum_probability=self._plan.minimum_probability,
        )

    def training_embeddings(self, training: Callable[[], Iterable[Batch]]) -> TrainingEmbeddings:
        """Embeddings of a sample of the training images of all ranks, without a threshold."""
        rows = self._rows_to_store
        parts: list[np.ndarray] = []
        for batch in training():  # ordered by the hash of their content, so the first ones are a random sample
            parts.append(self._network.embeddings(batch))
            if sum(map(len, parts)) >= rows:
                break
        embeddings = gathered(self._collective, np.concatenate(parts)[:rows])
        # Fine-tuning makes features near the head forget whatever does not tell labels apart, so all are compared.
        compared_from = self._plan.architecture.compared_from if self._plan.trainable == "head" else 0
        return TrainingEmbeddings.of(embeddings, compared_from)

    def with_threshold(self, embeddings: TrainingEmbeddings, validation: Iterable[Batch]) -> TrainingEmbeddings:
        """The same, with a threshold from the validation images of all ranks."""
        distances = [embeddings.distances(self._network.embeddings(batch)) for batch in validation]
        return embeddings.calibrated(gathered(self._collective, np.concatenate(distances)))

    @property
    def _rows_to_store(self) -> int:
        return max(MAX_STORED // self._collective.size, 1)

    def _plain(self, frozen: Activations) -> Iterator[Batch]:
        """Training images that are not augmented, as many as are stored."""
        image_ids = self._training.labels()["image_id"]
        skipped = frozenset(image_ids[self._rows_to_store :]) - frozenset(image_ids[: self._rows_to_store])
        for images in rebatched(self._training.images(skipped=skipped)):
            yield Batch(frozen(images.pixels), images.label_indexes)

    def _logits(self, images: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """The outputs (n, labels) for the images of all ranks, and their label indexes (n,)."""
        batches = list(images)
        logits = np.concatenate([self._network.logits(batch) for batch in batches])
        label_indexes = np.concatenate([batch.label_indexes for batch in batches])
        everywhere = gathered(self._collective, np.column_stack([logits, label_indexes]))
        return everywhere[:, :-1], everywhere[:, -1].astype(int)

    def fine_tune(self, head: TrainedPart) -> TrainedPart:
        """Train the head and the blocks that are not frozen, starting from the trained head.

        With an untrained head, the first gradients would distort the pretrained blocks: Kumar et al., Fine-Tuning can
        Distort Pretrained Features (2022).
        """
        frozen = self._network.freeze(self._plan.frozen_blocks, self._plan.fine_tuning)
        weights, optimizer_state = self._network.weights(), self._network.optimizer_state()
        training = self._source(frozen)
        validation = self._precompute(self._validation, frozen)
        progress = self._run("fine_tuning", self._plan.fine_tuning, training, validation)
        scale = self._calibrate(validation) if self._plan.calibrated else 1.0

        def refit() -> None:
            self._network.load_weights(weights)
            self._network.load_optimizer_state(optimizer_state)
            self._network.set_label_weights(self._label_weights(head.label_indexes))
            schedule = self._plan.refit_schedule(progress.best_epoch)
            self._run("refit", schedule, self._of_both(training, validation))
            self._scale_head(scale)

        plain = (lambda: training) if isinstance(training, PrecomputedInputs) else partial(self._plain, frozen)
        return TrainedPart(progress, plain, validation, head.label_indexes, refit)

    def _source(self, frozen: Activations) -> PrecomputedInputs | AugmentedImages | AugmentedViews:
        """The training images for fine-tuning."""
        plan, shard = self._plan, self._training
        if not plan.augmentation:
            return self._precompute(shard, frozen)
        if not plan.augmented_views:
            return AugmentedImages(shard, frozen, plan.batch_size, plan.seed)
        return AugmentedViews(plan.augmented_views, shard, frozen, self._collective, plan.batch_size, plan.seed)

    def _of_both(
        self, training: PrecomputedInputs | AugmentedImages | AugmentedViews, validation: PrecomputedInputs
    ) -> Source:
        """The images of fine-tuning, together with those of the validation split."""
        if isinstance(training, PrecomputedInputs):
            return JoinedInputs((training, validation))
        if isinstance(training, AugmentedViews):
            return JoinedViews((training, replace(training, shard=self._validation, computed={})))
        caches = self._training.caches + self._validation.caches
        return replace(training, shard=replace(self._training, caches=caches))

    def _run(
        self, name: str, schedule: Schedule, training: Source, validation: PrecomputedInputs | None = None
    ) -> Progress:
        phase = Phase(name, schedule, self._plan.seed, self._report)
        if validation is not None:
            self.steps, self.first_step = training.steps, self.first_step or time.monotonic()
        progress = run_epochs(
            self._network, self._collective, training, validation, phase=phase, checkpoints=self._checkpoints
        )
        if self._collective.rank == 0 and validation is not None:
            logger.info(
                "%s %s best of %s epochs: %s, validation %.3f",
                self._network.framework,
                name.replace("_", " "),
                progress.epoch,
                progress.best_epoch,
                progress.best[0],
            )
        return progress

    def _precompute(
        self, shard: Shard, activations: Activations, stored: StoredEmbeddings | None = None
    ) -> PrecomputedInputs:
        plan = self._plan
        return precompute_inputs(
            shard, activations, self._collective, batch_size=plan.batch_size, seed=plan.seed, stored=stored
        )

    def _counted(self, activations: Activations) -> Activations:
        def counted(pixels: np.ndarray) -> np.ndarray:
            self.embedded_images += len(pixels)
            return activations(pixels)

        return counted


def label_weights(label_indexes: np.ndarray, labels: int, power: float, collective: Collective) -> np.ndarray:
    """Loss weights (labels,): those with which all labels count the same, to a power.

    With a power of 1, the same as "balanced" in scikit-learn's `compute_class_weight`; 0.5 is the power of Mahajan et
    al., Exploring the Limits of Weakly Supervised Pretraining (2018). `label_indexes` are those of this rank's images.
    """
    counts = collective.sum(np.bincount(label_indexes, minlength=labels))
    # At least 1: a label without training images has no images to weight either.
    return (counts.sum() / (labels * np.maximum(counts, 1))) ** power


def _not_refitted() -> None:
    raise ValueError("refit needs a head in closed form")
