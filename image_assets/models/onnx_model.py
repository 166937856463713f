"""A trained network as ONNX: pixels in, probabilities out."""

import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_assets.models.engines import SIDE_PIXELS, Network, load_tensorflow, onnx_network
from resources.child_process import end_with

if TYPE_CHECKING:
    import onnx

OPSET = 18
INPUT, OUTPUT = "pixels", "probabilities"
TOLERANCE = 1e-3  # of a probability
TRIED_IMAGES = 8


class DifferentAnswers(ValueError):
    """A network answers otherwise than the ONNX that was made of it."""


def write_onnx(framework: str, model: Path, file: Path) -> None:
    """Write the network of a model in the framework's own flavor, in a local folder, as an ONNX file.

    It takes `pixels`, uint8 (n, 224, 224, 3), and gives `probabilities`, float32 (n, labels); the normalisation is in
    it. DifferentAnswers when the file does not answer as the network does.
    """
    # Apart, as two frameworks in one process do not get along; a run that is killed takes the export with it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with, initargs=(os.getpid(),)) as apart:
        apart.submit(_write_here, framework, model, file).result()


def require_same_answers(network: Network, other: Network) -> None:
    """DifferentAnswers unless both give the same probabilities, and so labels, for some noise."""
    noise = np.random.default_rng(0).integers(0, 256, (TRIED_IMAGES, 7, 7, 3), np.uint8)
    pixels = np.kron(noise, np.ones((1, SIDE_PIXELS // 7, SIDE_PIXELS // 7, 1), np.uint8))
    difference = float(np.abs(network(pixels) - other(pixels)).max())
    if not difference <= TOLERANCE:
        raise DifferentAnswers(
            f"probabilities differ by {difference:.2g} between a network and its ONNX: expected {TOLERANCE:g} at most; "
            "is one of the packages that export it another version than pyproject.toml says?"
        )


def _write_here(framework: str, model: Path, file: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    warnings.simplefilter("ignore", FutureWarning)  # of torch, of its own exporter
    import onnx

    exported, network = {"tensorflow": _from_tensorflow, "torch": _from_torch}[framework](str(model))
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, file)
    require_same_answers(network, onnx_network(str(file)))


def _from_tensorflow(folder: str) -> "tuple[onnx.ModelProto, Network]":
    load_tensorflow()
    import tensorflow as tf
    import tf2onnx
    from mlflow import tensorflow

    network = tensorflow.load_model(folder)
    graph = tf.function(lambda pixels: {OUTPUT: network(pixels, training=False)})
    pixels = tf.TensorSpec((None, SIDE_PIXELS, SIDE_PIXELS, 3), tf.uint8, name=INPUT)
    exported, _ = tf2onnx.convert.from_function(graph, [pixels], opset=OPSET)
    return exported, lambda pixels: graph(tf.constant(pixels))[OUTPUT].numpy()


def _from_torch(folder: str) -> "tuple[onnx.ModelProto, Network]":
    import torch

    (file,) = Path(folder).rglob("*.pt2")
    program = torch.export.load(file)
    exported = torch.onnx.export(
        program, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
    )
    if exported is None:
        raise RuntimeError("torch exported nothing: expected a program")
    network = program.module()
    return exported.model_proto, lambda pixels: network(torch.from_numpy(pixels)).detach().numpy()
