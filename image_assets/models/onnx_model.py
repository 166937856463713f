"""A version's network as ONNX: pixels in, probabilities out, its labels beside them."""

import json
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from image_assets.models.image_classifier import SIDE_PIXELS
from resources.child_process import end_with

if TYPE_CHECKING:
    import onnx

OPSET = 18
INPUT, OUTPUT = "pixels", "probabilities"
LABELS, COLOR, FRAMEWORK = "labels", "color", "framework"  # the metadata of the file


def write_onnx(version: Path, file: Path) -> None:
    """Write the network of a version, in the folder that MLflow downloaded it to, as an ONNX file.

    It takes `pixels`, uint8 (n, 224, 224, 3), and gives `probabilities`, float32 (n, labels); the normalisation is in
    it. Its metadata hold the labels (JSON) in the order of the probabilities, and the color of the pixels.
    """
    # Apart, as two frameworks in one process do not get along; a run that is killed takes the export with it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with, initargs=(os.getpid(),)) as apart:
        apart.submit(_write_here, version, file).result()


def _write_here(version: Path, file: Path) -> None:
    import onnx
    from mlflow.models import Model

    stored = Model.load(version).flavors["python_function"]["artifacts"]
    told = json.loads((version / stored["classifier"]["path"]).read_text())
    framework, network = told["framework"], version / stored["model"]["path"]
    model = {"tensorflow": _from_tensorflow, "torch": _from_torch}[framework](network)
    metadata = {LABELS: json.dumps(told["labels"], ensure_ascii=False), COLOR: told.get("color", "rgb")}
    onnx.helper.set_model_props(model, {**metadata, FRAMEWORK: framework})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _from_tensorflow(folder: Path) -> "onnx.ModelProto":
    import tensorflow as tf
    import tf2onnx
    from mlflow import tensorflow

    network = tensorflow.load_model(str(folder))
    graph = tf.function(lambda pixels: {OUTPUT: network(pixels, training=False)})
    pixels = tf.TensorSpec((None, SIDE_PIXELS, SIDE_PIXELS, 3), tf.uint8, name=INPUT)
    model, _ = tf2onnx.convert.from_function(graph, [pixels], opset=OPSET)
    return model


def _from_torch(folder: Path) -> "onnx.ModelProto":
    import torch
    from mlflow import pytorch

    pixels = torch.zeros((2, SIDE_PIXELS, SIDE_PIXELS, 3), dtype=torch.uint8)  # one image would fix the batch at one
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Exporting a model while it is in training mode")  # a graph has no modes
        program = torch.onnx.export(
            pytorch.load_model(str(folder)),
            (pixels,),
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch exported nothing: expected a program")
    return program.model_proto
