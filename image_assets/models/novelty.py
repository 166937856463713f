"""How far an image is from the training images, by its embedding.

The distance is that to the k-th nearest training image: Sun et al., Out-of-Distribution Detection with Deep Nearest
Neighbors (2022). It needs no assumption about how embeddings are distributed, and on photographs it found more images
of other things than Mahalanobis distances did.

This file stands alone: it is also stored beside every model version and loaded from there.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

MAX_STORED = 2048  # training images, a random sample; more find hardly anything else
MAX_NEIGHBORS = 20
FALSE_ALARMS = 0.05  # share of validation images beyond the threshold
ROUNDING = 1e-4  # of a distance, in half precision


@dataclass(frozen=True)
class TrainingEmbeddings:
    """Embeddings of training images, and the distance from which on an image is unlike them."""

    directions: np.ndarray  # (n, compared features) float16: embeddings of length 1
    threshold: float = np.inf
    compared_from: int = 0  # the first feature of an embedding that is compared
    max_neighbors: int = MAX_NEIGHBORS  # k is 5 % of the images, or this if it is less

    @classmethod
    def of(cls, embeddings: np.ndarray, compared_from: int = 0) -> "TrainingEmbeddings":
        """Those of training images (n, features), without a threshold yet."""
        return cls(to_directions(embeddings[:, compared_from:]).astype(np.float16), compared_from=compared_from)

    @classmethod
    def load(cls, file: str) -> "TrainingEmbeddings":
        """The inverse of `save`."""
        with np.load(file, allow_pickle=False) as stored:
            # Earlier releases compared all features, and did not record the number of neighbors.
            compared_from = int(stored["compared_from"]) if "compared_from" in stored else 0
            max_neighbors = int(stored["max_neighbors"]) if "max_neighbors" in stored else 50
            return cls(stored["directions"], float(stored["threshold"]), compared_from, max_neighbors)

    def save(self, file: Path) -> None:
        """Write an `.npz` file."""
        np.savez(file, **asdict(self))

    def calibrated(self, distances: np.ndarray) -> "TrainingEmbeddings":
        """With the threshold that FALSE_ALARMS of these distances, those of validation images, exceed."""
        threshold = np.quantile(distances, 1 - FALSE_ALARMS, method="higher")
        return replace(self, threshold=float(threshold) + ROUNDING)

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """The cosine distance, from 0 to 2, of embeddings (n, features) to their k-th nearest training image: (n,)."""
        return self._distances(to_directions(embeddings[:, self.compared_from :]))

    def rescaled(self, before: "TrainingEmbeddings") -> "TrainingEmbeddings":
        """With the threshold of the same images' embeddings by another network, in proportion to the distances.

        For a network that was also trained on the validation images, which therefore cannot give it a threshold.
        """
        ratio = self._spread / before._spread if before._spread > 0 else 1.0
        return replace(self, threshold=before.threshold * ratio)

    @property
    def _spread(self) -> float:
        """The median distance of the training images from each other."""
        # One neighbor more, because each image is its own nearest one.
        return float(np.median(self._distances(self.directions.astype(np.float32), more=1)))

    def _distances(self, directions: np.ndarray, *, more: int = 0) -> np.ndarray:
        neighbor = min(max(len(self.directions) // 20, 1), self.max_neighbors)
        neighbor = min(neighbor + more, len(self.directions))
        similarities = directions @ self._columns
        nearest = np.partition(similarities, -neighbor, axis=1)[:, -neighbor]
        return np.maximum(1 - nearest, 0)

    @cached_property
    def _columns(self) -> np.ndarray:
        """The directions (compared features, n) float32."""
        return self.directions.astype(np.float32).T


def to_directions(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (n, features) of length 1, float32; zeros stay zeros."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return (embeddings / np.where(lengths > 0, lengths, 1)).astype(np.float32)
