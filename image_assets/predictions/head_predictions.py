"""Predictions of versions with an unchanged backbone: a matrix product with embeddings that the table already has."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from image_assets.data.image_files import IMAGE_KEYS
from image_assets.models.calibration import log_softmax
from image_assets.models.embeddings import StoredEmbeddings
from image_assets.models.lineage import EMBEDDING_BACKBONE
from image_assets.models.logged_models import CLASSIFIER_FILE, HEAD_FILE, TRAINING_EMBEDDINGS_FILE
from image_assets.models.novelty import TrainingEmbeddings
from image_assets.models.scoring import to_valid_prediction
from image_assets.models.stored_embeddings import embedding_files
from image_assets.schemas import IMAGE_PREDICTIONS
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.table import file_layout
from resources.mlflow.model_registry import ModelRegistry, ModelVersion


@dataclass(frozen=True)
class Head:
    """A version's head, and what else its answers depend on.

    Attributes:
        backbone: The backbone whose embeddings it takes.
        labels: The version's labels.
        kernel: (features, labels).
        bias: (labels,).
        thresholds: For each label, the probability below which the version abstains; None if it always does.
        training: What the version measures distances from.
    """

    backbone: str
    labels: tuple[str, ...]
    kernel: np.ndarray
    bias: np.ndarray
    thresholds: Sequence[float | None]
    training: TrainingEmbeddings

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The probabilities (n, labels) float64 for embeddings (n, features)."""
        return np.exp(log_softmax(embeddings.astype(np.float64) @ self.kernel + self.bias))

    def answers(self, embeddings: np.ndarray) -> Iterator[Row]:
        """The answer for each embedding, as `ImageClassifier` gives it."""
        distances = self.training.distances(embeddings).tolist()
        for probabilities, distance in zip(self.probabilities(embeddings), distances, strict=True):
            best = int(probabilities.argmax())
            threshold = self.thresholds[best]
            abstained = threshold is None or bool(np.float32(probabilities[best]) < np.float32(threshold))
            yield {
                "label": None if abstained else self.labels[best],
                "probability": float(probabilities[best]),
                "probabilities": probabilities.tolist(),
                "abstained": abstained,
                "most_probable_label": self.labels[best],
                "distance_from_training": distance,
                "unlike_training": distance > self.training.threshold,
                "fault": None,
            }


def read_head(registry: ModelRegistry, version: ModelVersion) -> Head | None:
    """The head of a version whose backbone is unchanged; None for others, and for versions of earlier releases.

    Raises:
        DamagedVersion: The version's files have changed since they were logged, or must not be loaded.
    """
    backbone = version.tags.get(EMBEDDING_BACKBONE)
    if not backbone:
        return None
    registry.require_files_as_logged(version)
    with TemporaryDirectory() as folder:
        file = registry.download(f"{version.uri}/artifacts/{HEAD_FILE}", Path(folder))
        with np.load(file, allow_pickle=False) as stored:
            labels, kernel, bias = tuple(stored["labels"].tolist()), stored["kernel"], stored["bias"]
        file = registry.download(f"{version.uri}/artifacts/{TRAINING_EMBEDDINGS_FILE}", Path(folder))
        # Not from the version's tag, which anybody may edit.
        classifier = json.loads(
            registry.download(f"{version.uri}/artifacts/{CLASSIFIER_FILE}", Path(folder)).read_text()
        )
        thresholds = classifier.get("thresholds") or [0.0] * len(labels)
        return Head(backbone, labels, kernel, bias, thresholds, TrainingEmbeddings.load(str(file)))


def write_head_predictions(
    delta_tables: DeltaTables, new: NewRows, registry: ModelRegistry, version: ModelVersion, columns: Row
) -> tuple[list[WrittenFile], NewRows | None]:
    """Writes a version's predictions of images that have an embedding of its backbone.

    Args:
        delta_tables: The tables.
        new: The images to predict.
        registry: The registry, which has the version's files.
        version: The version.
        columns: The columns of image_predictions that are the same for all rows.

    Returns:
        The files, and the images that have no embedding; None if there are none.
    """
    head = read_head(registry, version)
    if head is None:
        return [], new
    paths: dict[str, list[str]] = {}
    for row in new.read(IMAGE_KEYS).to_pylist():
        paths.setdefault(row["image_id"], []).append(row["path"])

    def predicted() -> Iterator[Row]:
        for image_ids, embeddings in StoredEmbeddings(embedding_files(delta_tables), head.backbone).read(paths.keys()):
            for image_id, answer in zip(image_ids, head.answers(embeddings), strict=True):
                valid = to_valid_prediction(answer, version)
                for path in paths.pop(image_id):
                    yield {"path": path, "image_id": image_id, **valid, **columns}

    total = sum(map(len, paths.values()))
    delta_tables.create(IMAGE_PREDICTIONS)
    files = list(write_files(predicted(), delta_tables.uri(IMAGE_PREDICTIONS), file_layout(IMAGE_PREDICTIONS)))
    left = frozenset((path, image_id) for image_id, of_image in paths.items() for path in of_image)
    if not left:
        return files, None
    share = len(left) / total
    rest = replace(
        new,
        wanted=left,
        count=len(left),
        size_bytes=round(new.size_bytes * share),
        all_bytes=round(new.all_bytes * share),
    )
    return files, rest
