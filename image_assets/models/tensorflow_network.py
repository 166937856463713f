"""Networks trained in TensorFlow: loaded on a GPU, and cut before the head.

This file stands alone: it is also stored beside every model version trained in TensorFlow and loaded from there.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

PACKAGE = "tensorflow"

# Pixels (n, side, side, 3) uint8 to probabilities (n, labels) or embeddings (n, features), float32.
Network = Callable[[np.ndarray], np.ndarray]
# Pixels to both of them, as `probabilities` and `embedding`.
WholeNetwork = Callable[[np.ndarray], dict[str, np.ndarray]]


def count_gpus() -> int:
    """How many GPUs TensorFlow finds."""
    load_tensorflow()
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def load_network(folder: str, device: str) -> tuple[WholeNetwork, type[Exception]]:
    """The network of an MLflow model, and the error it raises when the device's memory runs out.

    The backbone computes in half precision; the weights and the head are float32.
    """
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
        # An explicit signature: otherwise every new batch length would trace and compile another graph.
        layers = {"probabilities": model.output, "embedding": model.get_layer("embedding").output}
        whole = keras.Model(model.inputs, layers)
    network = tf.function(
        lambda pixels: whole(pixels, training=False), input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)]
    )

    def outputs(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with tf.device(name):
            found = network(tf.constant(pixels))
        return {output: values.numpy().astype(np.float32) for output, values in found.items()}

    return outputs, tf.errors.ResourceExhaustedError


def load_embedder(folder: str) -> Network:
    """The network of an MLflow model up to its layer `embedding`, on the CPU."""
    import keras
    from mlflow import tensorflow

    model = tensorflow.load_model(folder)
    network = keras.Model(model.inputs, model.get_layer("embedding").output)
    return lambda pixels: np.asarray(network(pixels, training=False))


def load_tensorflow() -> None:
    """Import TensorFlow and Keras quietly, and so that PyTorch can still be imported afterwards."""
    if importlib.util.find_spec("triton"):
        # Loaded after TensorFlow, when a PyTorch version needs it, it would crash the process.
        importlib.import_module("triton._C.libtriton")
    # Allocate GPU memory as needed instead of all of it at once: other tasks, and PyTorch, share the GPU.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _startup_lines_dropped():
        importlib.import_module("tensorflow")
        importlib.import_module("keras")


@contextmanager
def _startup_lines_dropped() -> Iterator[None]:
    """Drop what TensorFlow's libraries write to stderr while they load, before any log level applies."""
    saved_stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
        os.close(nowhere)
