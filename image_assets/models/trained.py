"""What a training brings back from each rank."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trained:
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
