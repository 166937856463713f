"""What a training on Horovod processes is told: plain values, the same for both frameworks."""

from dataclasses import dataclass
from typing import Literal

from resources.delta.row_groups import Color, Content
from resources.processes.rank_process import Distributor


@dataclass(frozen=True)
class TrainingResult:
    """One rank's account of a training: plain values, so that it travels from the rank to the driver."""

    rank: int
    size: int
    model_uri: str | None  # the MLflow model in its own flavor, which rank 0 logs; None on the other ranks
    backbone: str  # what was really used: folder, imagenet or untrained
    # Per epoch, averaged over the ranks: epoch, loss, accuracy, validation_loss, validation_accuracy, seconds.
    history: tuple[dict[str, float], ...]
    best_epoch: int  # whose weights the model has, counted over the whole history
    steps: int  # per epoch, equal on all ranks
    images_per_second: float  # of this rank, while it embedded images
    embedded_images: int  # by this rank; those that were known are not among them
    seconds: float  # on this rank, from the network's being there to the logged model
    seconds_to_first_step: float
    precision: str
    weights_digest: str  # SHA-256 of the trained weights, equal on all ranks


BACKBONE_BLOCKS = 19  # of MobileNetV2: the first convolution, 17 inverted residuals, the last convolution

Trainable = Literal["head", "top_blocks", "all"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Schedule:
    """How long the weights are changed, and by how much."""

    epochs: int
    learning_rate: float  # of one process; ranks multiply it
    warmup_epochs: int
    patience: int  # epochs without a better one, after which training stops
    weight_decay: float  # of AdamW, on kernels only
    dropout: float  # share of an embedding's features that a step does without


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that the trained weights follow from, but for the images."""

    labels: int
    backbone: str
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

    @property
    def frozen_blocks(self) -> int:
        """The blocks of the backbone, from its input on, that fine-tuning leaves as they are."""
        return {"head": BACKBONE_BLOCKS, "top_blocks": BACKBONE_BLOCKS - self.top_blocks, "all": 0}[self.trainable]


@dataclass(frozen=True)
class OutputLocations:
    """Where ranks keep and log things."""

    tracking_uri: str
    mlflow_run_id: str
    embeddings: str  # the folder of folders of embeddings that are known
    checkpoints: str  # the folder of this training's checkpoints
