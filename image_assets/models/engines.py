"""What computes a version's network: ONNX Runtime on a CPU, the framework that it was trained in on a GPU.

This file stands alone: it is also stored beside every model version and loaded from there.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

SIDE_PIXELS = 224
DEVICES = ("auto", "cpu", "cuda")
BATCH_IMAGES = {"cpu": 8, "cuda": 128}  # on a CPU more of them take more memory and are no faster
TRITON = "triton._C.libtriton"  # torch's compiler, which cannot be loaded after TensorFlow

Network = Callable[[np.ndarray], np.ndarray]  # pixels, uint8 (n, side, side, 3), to probabilities, float32 (n, labels)


def network_on(device: str, framework: str, model: str, onnx: str) -> Network:
    """The network on a device: of the framework's model, in a folder, or of the ONNX file."""
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}: expected one of {', '.join(DEVICES)}")
    use_assigned_gpu()
    if device == "auto":
        # Frameworks take seconds to load: they are not asked where no driver is, nor where they are not installed.
        possible = shutil.which("nvidia-smi") and importlib.util.find_spec(framework)
        device = "cuda" if possible and GPUS[framework]() else "cpu"
    if device == "cpu":
        return onnx_network(onnx)
    if not GPUS[framework]():
        raise ValueError(f"device is 'cuda', {framework} finds no GPU: expected one, or the device 'auto' or 'cpu'")
    return NETWORKS[framework](model, device)


def use_assigned_gpu() -> None:
    """Let this process see the GPU that Spark gave its task, and no other; before a framework looks for GPUs."""
    spark = sys.modules.get("pyspark")
    task = spark.TaskContext.get() if spark else None
    if task and "gpu" in task.resources():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.resources()["gpu"].addresses)


def in_fitting_batches(network: Network, images: int, out_of_memory: type[Exception]) -> Network:
    """The network, asked about so many images at once, or half as many each time that memory runs out.

    The number that fits stays for later calls.
    """
    most = images

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        nonlocal most
        answers, done, fitting = [], 0, most
        while done < len(pixels):
            batch = pixels[done : done + fitting]
            try:
                answers.append(network(batch))
            except out_of_memory:
                if len(batch) == 1:
                    raise
                fitting = len(batch) // 2
            else:
                done += len(batch)
        most = fitting
        return np.concatenate(answers)

    return probabilities


def onnx_network(file: str) -> Network:
    """The network of an ONNX file on the CPU, with as many threads as OMP_NUM_THREADS says, else one for each core."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail  # it has no narrower one for a lack of memory

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 4  # what fails is raised, and told there
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        (answers,) = session.run(None, {"pixels": pixels})
        return np.asarray(answers)

    return in_fitting_batches(probabilities, BATCH_IMAGES["cpu"], Fail)


def torch_network(folder: str, device: str) -> Network:
    """The network of a PyTorch model, in half precision where that is sound."""
    _require_triton()
    import torch
    from mlflow import pytorch

    # Pixels are channels-last as they come; the weights are laid out alike once. Torch's annotations forget it.
    network = pytorch.load_model(folder).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device, torch.float16):
            return network(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

    return in_fitting_batches(probabilities, BATCH_IMAGES[device], torch.OutOfMemoryError)


def tensorflow_network(folder: str, device: str) -> Network:
    """The network of a TensorFlow model, its backbone in half precision, weights and head in single."""
    load_tensorflow()
    import keras
    import tensorflow as tf
    from mlflow import tensorflow

    name = {"cpu": "/CPU:0", "cuda": "/GPU:0"}[device]
    with tf.device(name):
        model = tensorflow.load_model(folder)
        for backbone in (layer for layer in model.layers if isinstance(layer, keras.Model)):
            for layer in backbone.layers:
                layer.dtype_policy = keras.DTypePolicy("mixed_float16")
    # One graph for batches of every length.
    network = tf.function(
        lambda pixels: model(pixels, training=False),
        input_signature=[tf.TensorSpec((None, SIDE_PIXELS, SIDE_PIXELS, 3), tf.uint8)],
    )

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with tf.device(name):
            return network(tf.constant(pixels)).numpy()

    return in_fitting_batches(probabilities, BATCH_IMAGES[device], tf.errors.ResourceExhaustedError)


def torch_gpus() -> int:
    """How many GPUs PyTorch finds."""
    _require_triton()
    import torch

    return torch.cuda.device_count()


def tensorflow_gpus() -> int:
    """How many GPUs TensorFlow finds."""
    load_tensorflow()
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _require_triton() -> None:
    if "tensorflow" in sys.modules and TRITON not in sys.modules and importlib.util.find_spec("triton"):
        raise ImportError(
            "this process holds TensorFlow, and loading Triton, which torch needs, after it would crash the process: "
            "load this version first, or in a process of its own"
        )


def load_tensorflow() -> None:
    """Import TensorFlow and Keras, without a word of theirs, in a way in which PyTorch can be imported later."""
    if importlib.util.find_spec("triton"):
        importlib.import_module(TRITON)  # loaded after TensorFlow, for a version of torch, it would crash the process
    # Memory as it is needed, in place of all of the GPU's at once: other tasks, and torch, use the same one.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _startup_lines_dropped():
        importlib.import_module("tensorflow")
        importlib.import_module("keras")


@contextmanager
def _startup_lines_dropped() -> Iterator[None]:
    """Drop what TensorFlow's libraries write to stderr while they load: they do not know of any log level yet."""
    saved_stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
        os.close(nowhere)


GPUS = {"tensorflow": tensorflow_gpus, "torch": torch_gpus}
NETWORKS = {"tensorflow": tensorflow_network, "torch": torch_network}
