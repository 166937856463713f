"""Runs one network in one engine on photographs (the program that `benchmarks.engines` starts)."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks.photographs import files_in
from benchmarks.recipe_training import BACKBONE
from benchmarks.task import answer, read_task, timed

LABELS = 5
THREADS = 1  # as in a Spark Python worker
Network = Callable[[np.ndarray], np.ndarray]


def prepare(framework: str, target: Path) -> None:
    """Write a network as an MLflow model and as ONNX; its random head gives different images different labels."""
    import mlflow

    from image_assets.models.backbones import MOBILENET_V2_LEVELS
    from image_assets.models.logged_models import verified_onnx

    training = import_module(f"image_assets.models.{framework}_training")
    model, _ = training.build_model(LABELS, MOBILENET_V2_LEVELS, os.environ[BACKBONE], seed=0)
    kernel = np.random.default_rng(0).normal(0, 0.15, (MOBILENET_V2_LEVELS.features, LABELS)).astype(np.float32)
    if framework == "tensorflow":
        model.get_layer("head").set_weights([kernel, np.zeros(LABELS, np.float32)])
    else:
        head = model.get_submodule("head").weight.data
        head.copy_(head.new_tensor(kernel.T))
    target.mkdir(parents=True)
    uri = f"sqlite:///{target}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("engines", (target / "artifacts").as_uri()))
    logged = training.log_model(model, LABELS, MOBILENET_V2_LEVELS, uri, run.info.run_id)
    folder = mlflow.artifacts.download_artifacts(logged, dst_path=str(target / "logged"))
    (target / "model").write_text(folder)
    exported, network = training.export_network(model, MOBILENET_V2_LEVELS)
    (target / "network.onnx").write_bytes(verified_onnx(exported, network, MOBILENET_V2_LEVELS.side_pixels))


def tensorflow_function(folder: str, _: str) -> Network:
    """TensorFlow, as a `tf.function`."""
    import tensorflow as tf
    from mlflow import tensorflow

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    model = tensorflow.load_model(folder)
    network = tf.function(lambda pixels: model(pixels, training=False), reduce_retracing=True)
    return lambda pixels: network(tf.constant(pixels)).numpy()


def torch_script(folder: str, _: str) -> Network:
    """PyTorch as traced and frozen TorchScript, with pixels and weights in channels-last layout."""
    import torch
    from mlflow import pytorch

    network = pytorch.load_model(folder).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        example = torch.zeros((2, 224, 224, 3), dtype=torch.uint8)
        traced = cast("torch.jit.ScriptModule", torch.jit.trace(network, example))
        frozen = torch.jit.freeze(traced.eval())

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return frozen(torch.from_numpy(pixels)).numpy()

    return probabilities


def onnx_runtime(_: str, file: str) -> Network:
    """ONNX Runtime, which this project uses on a CPU."""
    from image_assets.models.engines import onnx_network

    network = onnx_network(file)
    return lambda pixels: network(pixels)["probabilities"]


def open_vino(_: str, file: str) -> Network:
    """OpenVINO in single precision; its bfloat16 changes some labels."""
    openvino = import_module("openvino")
    config = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(file, "CPU", config).create_infer_request()
    return lambda pixels: np.array(request.infer({0: pixels})[0])


ENGINES = {
    "tensorflow, tf.function": tensorflow_function,
    "torch, frozen TorchScript": torch_script,
    "onnxruntime": onnx_runtime,
    "openvino": open_vino,
}


def batches(landing: Path, images: int) -> Iterable[np.ndarray]:
    """The decoded photographs in batches: uint8 (n, 224, 224, 3)."""
    from image_assets.images.pixels import to_pixels

    pixels = np.stack([to_pixels(file.read_bytes(), 224) for file in sorted(files_in(landing))])
    return [pixels[start : start + images] for start in range(0, len(pixels), images)]


def main() -> None:
    """Prepare a network, or run it on all photographs: once to warm up, then again, timed."""
    task = read_task()
    target = Path(task.target)
    if task.benchmark == "prepare":
        prepare(task.kernel, target)
        answer({"work_seconds": 0.0})
        return
    engine, images = json.loads(task.kernel)
    network = ENGINES[engine]((target / "model").read_text(), str(target / "network.onnx"))
    decoded = batches(Path(task.source), images)
    found = np.concatenate([network(batch) for batch in decoded])
    with timed() as figures:
        computed = time.process_time()
        for batch in decoded:
            network(batch)
        figures["cpu_seconds"] = time.process_time() - computed  # with one thread, the wall time of an idle machine
        figures["probabilities"] = found.tolist()


if __name__ == "__main__":
    sys.exit(main())
