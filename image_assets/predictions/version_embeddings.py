"""What a model version's network makes of images before its head judges them (runs in a guarded process)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from image_assets.images.isolated_process import Failure
from image_assets.images.pixels import UnreadableImage, to_file_pixels
from resources.files.file_system import opened

SIDE_PIXELS, BATCH_SIZE = 224, 32
MOST_BYTES = 512 * 1024**2

Embed = Callable[[np.ndarray], np.ndarray]  # pixels (n, side, side, 3) uint8 in, embeddings (n, features) out


@dataclass(frozen=True)
class ImagesToEmbed:
    """A model version, as every process can load it, and the paths of images."""

    tracking_uri: str
    uri: str
    paths: tuple[str, ...]


def embeddings(images: ImagesToEmbed) -> np.ndarray | Failure:
    """Embeddings (n, features) of the images that can be read, or why the version gives none."""
    try:
        embed, color = loaded(images.tracking_uri, images.uri)
        pixels = [one for path in images.paths if (one := pixels_of(path, color)) is not None]
        batches = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
        return np.concatenate([embed(np.stack(batch)) for batch in batches]) if batches else np.empty((0, 0))
    except Exception as error:  # noqa: BLE001 - whatever a model raises is a fault of the version
        return Failure("raised", f"{type(error).__name__}: {error}"[:500])


def pixels_of(path: str, color: Literal["rgb", "gray"]) -> np.ndarray | None:
    """What a network sees of the file; None where it cannot be read any more."""
    try:
        with opened(path) as file:
            return to_file_pixels(file, SIDE_PIXELS, color, most_bytes=MOST_BYTES)
    except (OSError, UnreadableImage):  # gone or replaced since it was predicted
        return None


@cache
def loaded(tracking_uri: str, uri: str) -> tuple[Embed, Literal["rgb", "gray"]]:
    """The version's network up to its embedding, and the color it sees images in; loaded once in each process."""
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri)
    with TemporaryDirectory() as folder:
        files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        flavor = Model.load(str(files)).flavors["python_function"]
        places = {name: files / place["path"] for name, place in flavor.get("artifacts", {}).items()}
        if not {"classifier", "model"} <= places.keys():
            raise ValueError(f"{uri} holds {', '.join(places) or 'no artifacts'}: expected a trained image_classifier")
        told = json.loads(places["classifier"].read_text())
        networks = {"tensorflow": tensorflow_embedding, "torch": torch_embedding}
        return networks[told["framework"]](str(places["model"])), told.get("color", "rgb")


def torch_embedding(folder: str) -> Embed:
    """A network stored as an exported graph, cut before its last linear layer, the head."""
    import torch
    from mlflow import pytorch

    network = pytorch.load_model(folder)
    head = [node for node in network.graph.nodes if node.target == torch.ops.aten.linear.default][-1]
    (output,) = network.graph.find_nodes(op="output")
    output.args = ((head.args[0],),)
    network.graph.eliminate_dead_code()
    network.recompile()

    def embed(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return embed


def tensorflow_embedding(folder: str) -> Embed:
    """A Keras model, up to its layer `embedding`."""
    import keras
    from mlflow import tensorflow

    model = tensorflow.load_model(folder)
    network = keras.Model(model.inputs, model.get_layer("embedding").output)
    return lambda pixels: np.asarray(network(pixels, training=False))
