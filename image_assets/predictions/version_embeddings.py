"""Embeddings of images by a model version's network (runs in a guarded process)."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from image_assets.images.formats import UnreadableImage
from image_assets.images.isolated_process import ItemFailure
from image_assets.images.pixels import Reading, to_file_pixels
from image_assets.models.backbones import backbone_of
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.isolated_scoring import NO_PICKLES
from resources.files.file_system import open_file

BATCH_SIZE = 32
MAX_WHOLE_FILE_BYTES = 512 * 1024**2

Embed = Callable[[np.ndarray], np.ndarray]  # pixels (n, side, side, 3) uint8 in, embeddings (n, features) out
Read = Callable[[BinaryIO], np.ndarray]  # a file in, pixels (side, side, 3) uint8 out


@dataclass(frozen=True)
class EmbeddingRequest:
    """A model version that any process can load, and the paths of images."""

    tracking_uri: str
    uri: str
    paths: tuple[str, ...]


def embed_images(images: EmbeddingRequest) -> np.ndarray | ItemFailure:
    """Embeddings (n, features) of the readable images, or why the version failed."""
    try:
        embed, read = load_embedder(images.tracking_uri, images.uri)
        pixels = [one for path in images.paths if (one := read_pixels(path, read)) is not None]
        batches = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
        return np.concatenate([embed(np.stack(batch)) for batch in batches]) if batches else np.empty((0, 0))
    except Exception as error:  # noqa: BLE001 - whatever a model raises is a fault of the version
        return ItemFailure("raised", f"{type(error).__name__}: {error}"[:500])


def read_pixels(path: str, read: Read) -> np.ndarray | None:
    """The pixels (side, side, 3) of the file; None if it can no longer be read."""
    try:
        with open_file(path) as file:
            return read(file)
    except (OSError, UnreadableImage):  # gone or replaced since it was predicted
        return None


@cache
def load_embedder(tracking_uri: str, uri: str) -> tuple[Embed, Read]:
    """The version's network up to its embedding, and how it reads a file; loaded once per process."""
    import mlflow
    from mlflow.models import Model

    os.environ.update(NO_PICKLES)
    mlflow.set_tracking_uri(tracking_uri)
    with TemporaryDirectory() as folder:
        files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        flavor = Model.load(str(files)).flavors["python_function"]
        artifacts = {name: files / artifact["path"] for name, artifact in flavor.get("artifacts", {}).items()}
        if not {"classifier", "model"} <= artifacts.keys():
            raise ValueError(
                f"{uri} holds {', '.join(artifacts) or 'no artifacts'}: expected a trained image_classifier"
            )
        classifier = json.loads(artifacts["classifier"].read_text())
        network = FRAMEWORKS[classifier["framework"]].network
        embed = network.load_embedder(str(artifacts["model"]))
        side_pixels = classifier.get("side_pixels") or backbone_of(classifier).side_pixels
        read = partial(
            to_file_pixels,
            side_pixels=side_pixels,
            color=classifier.get("color", "rgb"),
            max_bytes=MAX_WHOLE_FILE_BYTES,
            reading=Reading(**classifier.get("reading", {})),
        )
        return embed, read
