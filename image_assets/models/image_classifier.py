"""The classifier that every trained model is stored as: images in, labels and probabilities out.

MLflow stores this file as the code of a model version, beside the trained model, its network as ONNX, its labels, and
copies of the files that decode images (`pixels.py` and what it imports), of `engines.py` and of the framework's file,
such as `torch_network.py`. A version therefore always decodes images as it was trained to, and needs nothing of this
project.
"""

import base64
import binascii
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

DECODED_AT_ONCE = 128  # the size of Spark's batches
MAX_WHOLE_FILE_BYTES = 512 * 1024**2  # larger files are scaled while they are decoded


class ImageClassifier(PythonModel):
    """Classifies images from a `content` column (bytes) or a `path` column."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the version's files, and its network onto the device of the model config."""
        files = context.artifacts
        classifier = json.loads(Path(files["classifier"]).read_text())
        device = (context.model_config or {}).get("device", "auto")
        self._labels: list[str] = classifier["labels"]
        self._color: str = classifier["color"]
        self._side_pixels: int = classifier["side_pixels"]
        self._pixels = _module_in(files["decoding"], "pixels")
        self._reading = self._pixels.Reading(**classifier.get("reading", {}))
        engines, framework = _module_of(files["engines"]), _module_of(files["framework"])
        self._decoders = ThreadPoolExecutor(engines.thread_count(), "decoder")
        self._network = engines.network_on(device, framework, files["model"], files["onnx"])

    # The return type differs because MLflow's own `predict` has no body, so that type checkers infer None.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """`label`, `probability` and `probabilities` of each row, with its index; nulls if the image cannot be read.

        Raises:
            ValueError: There is neither a column `content` nor a column `path`.
        """
        if not {"content", "path"} & set(model_input):
            # MLflow has dropped the columns that the signature does not name, and their rows with them.
            raise ValueError(
                "the input has neither a column `content` nor a column `path`: pass a DataFrame with the bytes of each "
                "image file in `content`, or its path in `path`"
            )
        contents = model_input["content"] if "content" in model_input else [None] * len(model_input)
        paths = model_input["path"] if "path" in model_input else [None] * len(model_input)
        images = list(zip(contents, paths, strict=True))
        answers = [
            answer
            for start in range(0, len(images), DECODED_AT_ONCE)
            for answer in self._answers(images[start : start + DECODED_AT_ONCE])
        ]
        labels, probability, probabilities = zip(*answers, strict=True) if answers else ((), (), ())
        columns = {
            "label": pd.Series(labels, dtype=object),
            "probability": pd.Series(probability, dtype=np.float64),
            "probabilities": pd.Series(probabilities, dtype=object),
        }
        return pd.DataFrame(columns).set_axis(model_input.index)

    def _answers(self, images: Sequence[tuple[Any, Any]]) -> list[tuple[str | None, float | None, list[float] | None]]:
        pixels = [*self._decoders.map(lambda image: self._decoded(*image), images)]
        readable = [number for number, of in enumerate(pixels) if of is not None]
        answers: list[tuple[str | None, float | None, list[float] | None]] = [(None, None, None)] * len(images)
        if readable:
            batch = np.stack([of for of in pixels if of is not None])
            for number, probabilities in zip(readable, self._network(batch).astype(np.float64), strict=True):
                best = int(probabilities.argmax())
                answers[number] = self._labels[best], float(probabilities[best]), probabilities.tolist()
        return answers

    def _decoded(self, content: Any, path: Any) -> np.ndarray | None:
        """The pixels (side, side, 3) uint8 of one image; None if it cannot be read."""
        try:
            if not _is_null(content):
                image = _to_bytes(content)
                return self._pixels.to_pixels(image, self._side_pixels, self._color, reading=self._reading)
            if _is_null(path):
                return None
            with _opened(os.fspath(path)) as file:
                return self._pixels.to_file_pixels(
                    file, self._side_pixels, self._color, max_bytes=MAX_WHOLE_FILE_BYTES, reading=self._reading
                )
        except ImportError as error:
            warnings.warn(f"an image needs a library that is missing: {error}", stacklevel=2)
            return None
        # UnreadableImage is a ValueError, as is a path with a null character; a path may be of any type.
        except (OSError, ValueError, TypeError, MemoryError):
            return None


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _to_bytes(content: Any) -> bytes:
    """The bytes of an image; text is base64, as JSON requests hold it."""
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if not isinstance(content, str):  # bytes(5) would be five zeros
        raise TypeError(f"content is a {type(content).__name__}: expected bytes, or text in base64")
    text = content.partition(",")[2] if content.startswith("data:") else content
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"content is text that is not base64: {error}") from error


def _opened(path: str) -> BinaryIO:
    """The opened file. A `file:` path contains `%` and bytes that are not UTF-8 as `%XX`."""
    scheme = "file:"
    file = Path(os.fsdecode(unquote_to_bytes(path[len(scheme) :])) if path.startswith(scheme) else path)
    if not file.is_file():  # reading a pipe would block forever
        raise FileNotFoundError(f"{path} is not a file")
    return file.open("rb")


def _module_in(folder: str, name: str) -> ModuleType:
    """A module in a folder whose files import each other as those of a package."""
    package = ModuleType(f"_{Path(folder).name}_{abs(hash(folder)):x}")
    package.__path__ = [folder]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.{name}")


def _module_of(file: str) -> ModuleType:
    """The module in a file, under a unique name: two versions in one process may decode differently."""
    name = f"_{Path(file).stem}_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file: expected the one that was stored with this version")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their own module there
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ImageClassifier())
