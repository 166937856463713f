"""The input and output of a training on its ranks: plain values, the same for every framework."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from image_assets.images.pixels import MAX_PIXELS, Reading
from image_assets.models.backbones import Backbone, to_backbone
from image_assets.models.calibration import Thresholds
from image_assets.models.novelty import TrainingEmbeddings
from resources.delta.row_groups import Color, Content, Page
from resources.processes.rank_process import Distributor

if TYPE_CHECKING:
    from image_assets.models.embedding_networks import EmbeddingNetwork

Trainable = Literal["head", "top_blocks", "all"]
Precision = Literal["auto", "float32", "bfloat16"]
HeadFit = Literal["closed_form", "epochs"]


@dataclass(frozen=True)
class TrainingResult:
    """What one rank returns to the driver."""

    rank: int
    size: int
    model_uri: str | None  # the MLflow model in its own flavor, which rank 0 logs; None on the other ranks
    backbone: str  # the weights that were used: folder, imagenet, package, file or untrained
    # Per epoch, averaged over the ranks: epoch, loss, accuracy, validation_loss, validation_accuracy, seconds.
    history: tuple[dict[str, float], ...]
    best_epoch: int  # by the validation images, counted over the whole history
    steps: int  # per epoch, equal on all ranks
    images_per_second: float  # of this rank, while it embedded images; `combined` adds up those of all ranks
    embedded_images: int  # by this rank, not counting those that image_embeddings has; `combined` adds them up
    seconds: float  # on this rank, from the built network to the logged model
    seconds_to_first_step: float
    precision: str
    weights_digest: str  # SHA-256 of the trained weights, equal on all ranks
    network: bytes | None  # the content of its ONNX file; None on the other ranks
    thresholds: Thresholds | None = None  # None if the version answers for every image
    training_embeddings: TrainingEmbeddings | None = None  # of rank 0
    embedding_backbone: str = ""  # whose embeddings the head takes, as in `image_embeddings`; empty if fine-tuned
    head: tuple[np.ndarray, np.ndarray] | None = None  # kernel (features, labels) and bias; None if fine-tuned

    @property
    def validation_accuracy(self) -> float:
        """That of the best epoch."""
        return self.history[self.best_epoch - 1]["validation_accuracy"]

    @property
    def abstention(self) -> dict[str, float]:
        """For how many validation images the version answers, and how many answers are right; empty if for all."""
        if self.thresholds is None:
            return {}
        precision = self.thresholds.precision
        right = {} if precision is None else {"validation_precision": precision}
        return {"validation_coverage": self.thresholds.coverage, **right}


@dataclass(frozen=True)
class Schedule:
    """How long the weights are trained, and with which step sizes."""

    epochs: int
    learning_rate: float  # for one process; multiplied by the number of ranks
    warmup_epochs: int
    patience: int  # epochs without a better one, after which training stops
    weight_decay: float  # of AdamW, on kernels only
    dropout: float  # share of an embedding's features that a step leaves out
    averaged_epochs: int = 1  # the last ones, whose mean weights are what an epoch is judged by


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines the trained weights, except the images."""

    labels: int
    backbone: str  # where its weights come from: auto, imagenet, none, or a folder
    content: Content
    color: Color
    trainable: Trainable
    top_blocks: int
    augmentation: bool
    head: Schedule
    fine_tuning: Schedule
    batch_size: int
    label_smoothing: float
    class_weights: bool
    precision: Precision
    distributor: Distributor
    seed: int
    backbone_name: str
    page: Page = "non_blank"
    pixel_limit: int = MAX_PIXELS
    class_weights_power: float = 1.0  # 1: all labels count the same, as in releases without the setting
    head_fit: HeadFit = "closed_form"
    refit: bool = False
    augmented_views: int = 0  # of each image; 0: another one in each epoch
    minimum_probability: float | None = None
    minimum_precision: float | None = None

    @property
    def abstains(self) -> bool:
        """Whether the version leaves images without a label whose probability is too low."""
        return self.minimum_probability is not None or self.minimum_precision is not None

    @property
    def calibrated(self) -> bool:
        """Whether the head's probabilities are calibrated; those of a head from epochs never were."""
        return self.head_fit == "closed_form"

    @property
    def reading(self) -> Reading:
        """How images are read."""
        return Reading(self.page, self.pixel_limit)

    @property
    def architecture(self) -> Backbone:
        """The backbone's row."""
        return to_backbone(self.backbone_name)

    def refit_schedule(self, best_epoch: int) -> Schedule:
        """That of fine-tuning on training and validation images: as long as was best on the training images."""
        warmup_epochs = min(self.fine_tuning.warmup_epochs, best_epoch - 1)
        return replace(self.fine_tuning, epochs=best_epoch, warmup_epochs=warmup_epochs)

    @property
    def frozen_blocks(self) -> int:
        """How many of the backbone's blocks, from the input on, fine-tuning leaves unchanged."""
        blocks = self.architecture.blocks
        return {"head": blocks, "top_blocks": blocks - self.top_blocks, "all": 0}[self.trainable]


@dataclass(frozen=True)
class OutputLocations:
    """Where ranks store and log their output."""

    tracking_uri: str
    mlflow_run_id: str
    embeddings: tuple[str, ...]  # the files of image_embeddings
    checkpoints: str  # the folder of this training's checkpoints
    exported: "EmbeddingNetwork | None" = None  # the plan's backbone as an ONNX file, if there is one
