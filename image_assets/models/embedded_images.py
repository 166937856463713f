"""Images as a frozen backbone sees them, and a head fitted to them: plain arrays, the same for both frameworks."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of one rank's shard: embeddings (n, 1280) float32 and label indexes (n,) int64."""

    embeddings: np.ndarray
    label_indexes: np.ndarray

    @classmethod
    def in_order_of_key(cls, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "EmbeddedImages":
        """Batches of embeddings, label indexes and keys as one, in an order that does not depend on their reading."""
        if not parts:
            raise ValueError("a shard of the cache holds no rows: expected at least one row for every Horovod process")
        embeddings, label_indexes, keys = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((label_indexes, keys))
        return cls(embeddings[order], label_indexes[order])

    def __len__(self) -> int:
        return len(self.label_indexes)

    def standardised(self, mean: np.ndarray, deviation: np.ndarray) -> "EmbeddedImages":
        """The same images, each feature minus its mean and over its deviation."""
        return replace(self, embeddings=((self.embeddings - mean) / deviation).astype(np.float32))

    def batches(self, steps: int, batch_size: int, seed: tuple[int, ...]) -> np.ndarray:
        """Row numbers (steps, batch_size) in shuffled order; a shard with too few rows goes round again."""
        return np.resize(np.random.default_rng(seed).permutation(len(self)), (steps, batch_size))


@dataclass(frozen=True)
class Head:
    """A dense layer on embeddings: kernel (1280, labels) and bias (labels,)."""

    kernel: np.ndarray
    bias: np.ndarray

    def on_raw_embeddings(self, mean: np.ndarray, deviation: np.ndarray) -> "Head":
        """The head that gives for embeddings as they come what this one gives for standardised ones."""
        kernel = self.kernel / deviation[:, None]
        return Head(kernel.astype(np.float32), (self.bias - mean @ kernel).astype(np.float32))

    def digest(self) -> str:
        """SHA-256 of the weights."""
        return hashlib.sha256(self.kernel.tobytes() + self.bias.tobytes()).hexdigest()


@dataclass(frozen=True)
class Fit:
    """A fitted head, each epoch's figures (averages over all ranks), and the steps that an epoch took."""

    head: Head
    history: tuple[dict[str, float], ...]
    steps: int


def usable_deviation(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The standard deviation; 1 for a feature that does not vary, as many of an untrained backbone."""
    deviation = np.sqrt(variance)
    return np.where(deviation > 1e-6 * np.abs(mean) + 1e-30, deviation, 1.0)


def check_figures(figures: dict[str, float], learning_rate: float) -> None:
    """Raise when the loss is no number any more."""
    if not math.isfinite(figures["loss"] + figures["validation_loss"]):
        raise FloatingPointError(
            f"epoch {figures['epoch']:.0f} ends with loss {figures['loss']} and validation loss "
            f"{figures['validation_loss']}: expected finite numbers; lower learning_rate, which is {learning_rate}"
        )
