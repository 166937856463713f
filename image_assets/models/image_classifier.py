"""What every model becomes: image bytes in, label and probabilities out.

MLflow stores this file as the code of a model version, beside the trained model, its labels, and the `pixels.py` it
was trained with: a version decodes images as it did then, and needs nothing of this project.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

BATCH_SIZE = 32
SIDE_PIXELS = 224
MOST_BYTES = 512 * 1024**2  # a larger file is not read whole: it is scaled while it is decoded
DEVICES = ("auto", "cpu", "cuda")
TRITON = "triton._C.libtriton"  # torch's compiler, which cannot be loaded after TensorFlow


class ImageClassifier(PythonModel):
    """Images in a `content` column (bytes) or a `path` column, their label and probabilities out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load what a version consists of, onto the device that the model config names."""
        told = json.loads(Path(context.artifacts["classifier"]).read_text())
        device = (context.model_config or {}).get("device", "auto")
        if device not in DEVICES:
            raise ValueError(f"device is {device!r}: expected one of {', '.join(DEVICES)}")
        self._labels: list[str] = told["labels"]
        self._color: str = told.get("color", "rgb")  # what was logged before versions knew gray does not say it
        self._pixels = _module_of(context.artifacts["pixels"])
        networks = {"tensorflow": _tensorflow_network, "torch": _torch_network}
        self._network = networks[told["framework"]](context.artifacts["model"], device)

    # MLflow's own `predict` has no body, which makes it one that returns None.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """One row for each row: `label`, `probability`, `probabilities`; nulls for an image that cannot be read."""
        contents = model_input["content"] if "content" in model_input else [None] * len(model_input)
        paths = model_input["path"] if "path" in model_input else [None] * len(model_input)
        images = list(zip(contents, paths, strict=True))
        answers = [
            answer
            for start in range(0, len(images), BATCH_SIZE)
            for answer in self._answers(images[start : start + BATCH_SIZE])
        ]
        labels, probability, probabilities = zip(*answers, strict=True) if answers else ((), (), ())
        columns = {
            "label": pd.Series(labels, dtype=object),
            "probability": pd.Series(probability, dtype=np.float64),
            "probabilities": pd.Series(probabilities, dtype=object),
        }
        return pd.DataFrame(columns).set_axis(model_input.index)

    def _answers(self, images: Sequence[tuple[Any, Any]]) -> list[tuple[str | None, float | None, list[float] | None]]:
        pixels = [self._decoded(content, path) for content, path in images]
        readable = [number for number, of in enumerate(pixels) if of is not None]
        answers: list[tuple[str | None, float | None, list[float] | None]] = [(None, None, None)] * len(images)
        if readable:
            batch = np.stack([of for of in pixels if of is not None])
            for number, probabilities in zip(readable, self._network(batch).astype(np.float64), strict=True):
                best = int(probabilities.argmax())
                answers[number] = self._labels[best], float(probabilities[best]), probabilities.tolist()
        return answers

    def _decoded(self, content: Any, path: Any) -> np.ndarray | None:
        """Pixels of one image; None when it cannot be read."""
        try:
            if not _is_null(content):
                return self._pixels.to_pixels(bytes(content), SIDE_PIXELS, self._color)
            if _is_null(path):
                return None
            with _opened(path) as file:
                return self._pixels.to_file_pixels(file, SIDE_PIXELS, self._color, most_bytes=MOST_BYTES)
        except ImportError as error:
            warnings.warn(f"{path} is too large to be decoded whole: install pyvips ({error})", stacklevel=2)
            return None
        except (OSError, ValueError):  # UnreadableImage is a ValueError, as is a path with a null character
            return None


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _opened(path: str) -> BinaryIO:
    """A file, to be read; a `file:` path holds `%` and bytes that are no UTF-8 as `%XX`."""
    scheme = "file:"
    file = Path(os.fsdecode(unquote_to_bytes(path[len(scheme) :])) if path.startswith(scheme) else path)
    if not file.is_file():  # reading a pipe would wait for ever
        raise FileNotFoundError(f"{path} is no file")
    return file.open("rb")


def _module_of(file: str) -> ModuleType:
    """The module in a file, under a name of its own: two versions may decode differently in one process."""
    name = f"_pixels_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file: expected the pixels.py of this version")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _torch_network(folder: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    if "tensorflow" in sys.modules and TRITON not in sys.modules and importlib.util.find_spec("triton"):
        raise ImportError(
            "this process holds TensorFlow, and loading Triton, which torch needs, after it would crash the process: "
            "load this version first, or in a process of its own"
        )
    import torch
    from mlflow import pytorch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = pytorch.load_model(folder).to(device)
    if device == "cpu":
        _keep_freed_memory()
        example = torch.zeros((BATCH_SIZE, SIDE_PIXELS, SIDE_PIXELS, 3), dtype=torch.uint8)
        with torch.no_grad(), warnings.catch_warnings():
            # Freezing folds what is constant: about twice the speed. The exported graph's own checks of its
            # input's shape are not traced, which the tracer warns of.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = cast("torch.jit.ScriptModule", torch.jit.trace(network, example))
            network = torch.jit.freeze(traced.eval())

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels).to(device)).cpu().numpy()

    return probabilities


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory: to give torch's buffers back and fault them in again costs half the speed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold, gibibyte = -1, -3, 1 << 30
        libc.mallopt(trim_threshold, gibibyte)
        libc.mallopt(mmap_threshold, gibibyte)


@contextmanager
def _startup_lines_dropped() -> Iterator[None]:
    """Drop what TensorFlow's libraries write to stderr while they load: they do not know of any log level yet."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tensorflow_network(folder: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    if importlib.util.find_spec("triton"):
        importlib.import_module(TRITON)  # loaded after TensorFlow, for a version of torch, it would crash the process
    with _startup_lines_dropped():
        import tensorflow as tf
        from mlflow import tensorflow

        importlib.import_module("keras")
    if device == "auto":
        device = "cuda" if tf.config.list_physical_devices("GPU") else "cpu"
    if device == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise ValueError("device is 'cuda', TensorFlow finds no GPU: expected one, or the device 'auto' or 'cpu'")
    name = {"cpu": "/CPU:0", "cuda": "/GPU:0"}[device]
    with tf.device(name):
        model = tensorflow.load_model(folder)
    # One graph for batches of every length.
    network = tf.function(
        lambda pixels: model(pixels, training=False),
        input_signature=[tf.TensorSpec((None, SIDE_PIXELS, SIDE_PIXELS, 3), tf.uint8)],
    )

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with tf.device(name):
            return network(tf.constant(pixels)).numpy()

    return probabilities


mlflow.models.set_model(ImageClassifier())
