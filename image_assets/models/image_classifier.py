"""The classifier that every trained model is stored as: images in, labels and probabilities out.

MLflow stores this file as the code of a model version, beside the trained model, its network as ONNX, its labels, and
copies of the files that decode images (`pixels.py` and what it imports), of `engines.py`, `novelty.py`, `occlusion.py`
and of the framework's file, such as `torch_network.py`. A version therefore always decodes images as it was trained to,
and needs nothing of this project.
"""

import base64
import binascii
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote_to_bytes

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

DECODED_AT_ONCE = 128  # the size of Spark's batches
MAX_WHOLE_FILE_BYTES = 512 * 1024**2  # larger files are scaled while they are decoded
COLUMNS = ("content", "path")
ANSWER_COLUMNS = ("label", "probability", "probabilities", "abstained", "most_probable_label")
ANSWER_COLUMNS += ("distance_from_training", "unlike_training")
EXPECTED = (
    "a DataFrame with the bytes of each image file in the column `content` or its path in `path`; a list of paths or "
    "bytes; a single path or the bytes of one file; or pixels, as integers from 0 to 255 of shape (height, width, 3) "
    "or (images, height, width, 3)"
)
CHANNELS = (1, 3, 4)  # gray, RGB, RGBA

# Any: what a caller passes is of many types. Content (bytes, text in base64, pixels) and path; either may be null.
ImageRow = tuple[Any, Any]


class _Answer(NamedTuple):
    """What a version says of an image."""

    probabilities: np.ndarray  # (labels,) float64
    distance: float | None
    heat: list[list[float]] | None


class ImageClassifier(PythonModel):
    """Classifies images: files by their bytes or path, or pixels."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the version's files, and its network onto the device of the model config."""
        files = context.artifacts
        classifier = json.loads(Path(files["classifier"]).read_text())
        device = (context.model_config or {}).get("device", "auto")
        self._labels: list[str] = classifier["labels"]
        # For each label, the probability below which the version abstains; None if it always does.
        self._thresholds: list[float | None] = classifier.get("thresholds") or [0.0] * len(self._labels)
        self._color: str = classifier["color"]
        self._side_pixels: int = classifier["side_pixels"]
        self._pixels = _module_in(files["decoding"], "pixels")
        self._reading = self._pixels.Reading(**classifier.get("reading", {}))
        # What the version measures distances from; versions of earlier releases measure none.
        self._training = (
            _module_of(files["novelty"]).TrainingEmbeddings.load(files["training_embeddings"])
            if "training_embeddings" in files
            else None
        )
        engines, framework = _module_of(files["engines"]), _module_of(files["framework"])
        self._occlusion = _module_of(files["occlusion"])
        self._decoders = engines.Threads("decoder")
        self._network = engines.network_on(device, framework, files["model"], files["onnx"])

    # The return type differs because MLflow's own `predict` has no body, so that type checkers infer None. MLflow
    # passes on whatever it gets; it would warn about a type hint that says so, and about none.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per image, with the columns ANSWER_COLUMNS; nulls if the image cannot be read.

        `label` is null if the version `abstained`, because the probability is below the label's threshold. The
        `most_probable_label`, which `probability` belongs to, is there nevertheless. `distance_from_training` is the
        cosine distance of the image's embedding to those of training images; `unlike_training` is whether it is greater
        than for 95 % of the validation images.

        Args:
            context: Not used.
            model_input: The images, as EXPECTED describes them. The result has the index of a DataFrame or Series.
            params: `top_k` adds the columns `top_labels` and `top_probabilities` with that many labels, the most
                probable first. `probabilities_by_label` adds a column of that name with a dictionary for each image.
                `explain` adds the column `heat`: rows of numbers, from the upper left corner of the upright image, that
                are the greater, the more the label's probability depends on that part of the image.

        Raises:
            ValueError: The input has no column `content` or `path`, or is an array of another shape.
            TypeError: The input, or an item of a list, is of a type that is not an image.
        """
        top_k, by_label, explain = _checked_params(params or {})
        images, index = to_images(model_input)
        columns = [*ANSWER_COLUMNS]
        columns += ["top_labels", "top_probabilities"] if top_k else []
        columns += ["probabilities_by_label"] if by_label else []
        columns += ["heat"] if explain else []
        rows = [
            dict.fromkeys(columns) if answer is None else self._to_row(answer, top_k)
            for start in range(0, len(images), DECODED_AT_ONCE)
            for answer in self._answers(images[start : start + DECODED_AT_ONCE], explain)
        ]
        return pd.DataFrame(rows, index=index, columns=pd.Index(columns), dtype=object).astype(
            {"probability": np.float64, "distance_from_training": np.float64}
        )

    def _to_row(self, answer: _Answer, top_k: int) -> dict[str, Any]:
        """All columns about an image."""
        probabilities, distance, heat = answer
        best, top = int(probabilities.argmax()), np.argsort(-probabilities, kind="stable")[:top_k]
        threshold = self._thresholds[best]
        # Compared as float32, the type of the probabilities: 0.9 is not below a threshold of 0.9.
        abstained = threshold is None or bool(np.float32(probabilities[best]) < np.float32(threshold))
        return {
            "label": None if abstained else self._labels[best],
            "probability": float(probabilities[best]),
            "probabilities": probabilities.tolist(),
            "abstained": abstained,
            "most_probable_label": self._labels[best],
            "distance_from_training": distance,
            "unlike_training": None if self._training is None else distance > self._training.threshold,
            "top_labels": [self._labels[label] for label in top],
            "top_probabilities": probabilities[top].tolist(),
            "probabilities_by_label": dict(zip(self._labels, probabilities.tolist(), strict=True)),
            "heat": heat,
        }

    def _answers(self, images: Sequence[ImageRow], explain: bool) -> list[_Answer | None]:
        """What the network says of each image; None if it cannot be read."""
        pixels = [*self._decoders.map(lambda image: self._decoded(*image), images)]
        readable = [number for number, of in enumerate(pixels) if of is not None]
        answers: list[_Answer | None] = [None] * len(images)
        if readable:
            batch = np.stack([of for of in pixels if of is not None])
            outputs = self._network(batch)
            distances = (
                self._training.distances(outputs["embedding"]).tolist() if self._training else [None] * len(readable)
            )
            probabilities = outputs["probabilities"].astype(np.float64)
            for number, image, of, distance in zip(readable, batch, probabilities, distances, strict=True):
                answers[number] = _Answer(of, distance, self._heat(image) if explain else None)
        return answers

    def _heat(self, image: np.ndarray) -> list[list[float]]:
        return self._occlusion.heat_map(lambda pixels: self._network(pixels)["probabilities"], image).tolist()

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


def to_images(given: Any) -> tuple[list[ImageRow], pd.Index]:
    """The images of an input that EXPECTED describes, and the index of their rows."""
    if isinstance(given, pd.DataFrame):
        return _rows_of_frame(given), given.index
    if isinstance(given, Mapping):  # of columns, or a single row
        columns = {name: _to_items(value) for name, value in given.items()}
        if len(lengths := {len(items) for items in columns.values()}) > 1:
            raise ValueError(f"the columns have different numbers of images: {sorted(lengths)}")
        frame = pd.DataFrame({name: pd.Series(items, dtype=object) for name, items in columns.items()})
        return _rows_of_frame(frame), frame.index
    if isinstance(given, pd.Series):
        rows = _rows_of_frame(given.to_frame()) if given.name in COLUMNS else list(map(_to_image, given))
        return rows, given.index
    rows = [_to_image(item) for item in _to_items(given)]
    return rows, pd.RangeIndex(len(rows))


def _rows_of_frame(images: pd.DataFrame) -> list[ImageRow]:
    names = list(images.columns)
    if any(names.count(name) > 1 for name in COLUMNS):
        raise ValueError(f"the input has several columns of one name, {names}: expected one `content` and one `path`")
    if any(name in names for name in COLUMNS):
        contents, paths = (images[name] if name in names else [None] * len(images) for name in COLUMNS)
        return list(zip(map(_pixels_checked, contents), paths, strict=True))
    # Columns that the caller passed without names, as in Spark: udf("content", "path").
    if 1 <= len(names) <= len(COLUMNS) and list(map(str, names)) == [str(number) for number in range(len(names))]:
        return [_first_of_each(map(_to_image, cells)) for cells in zip(*(images[name] for name in names), strict=True)]
    raise ValueError(f"the input has the columns {names}, but neither `content` nor `path`; expected {EXPECTED}")


def _first_of_each(rows: Iterable[ImageRow]) -> ImageRow:
    contents, paths = zip(*rows, strict=True)
    content, path = (next((one for one in cells if not _is_null(one)), None) for cells in (contents, paths))
    return content, path


def _to_items(given: Any) -> list[Any]:
    """The images of an input without rows: a list of one for a single image."""
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview):
        return [given]
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OSU":
        if given.ndim == 2 or (given.ndim == 3 and given.shape[2] in CHANNELS):
            return [given]
        if given.ndim != 4:
            raise ValueError(f"the input is an array of shape {given.shape}; expected {EXPECTED}")
        return list(given)
    if isinstance(given, np.ndarray) and given.ndim == 0:
        return [given.item()]
    if not isinstance(given, Iterable) or hasattr(given, "read"):  # a file would be iterated line by line
        raise TypeError(f"the input is a {type(given).__name__}; expected {EXPECTED}")
    return list(given)


def _to_image(item: Any) -> ImageRow:
    """An image of a list: text is a path, unless it is a `data:` URL."""
    if _is_null(item):
        return None, None
    if isinstance(item, Mapping) and any(name in item for name in COLUMNS):
        return _pixels_checked(item.get("content")), item.get("path")
    if isinstance(item, str) and not item.startswith("data:") or isinstance(item, os.PathLike):
        return None, item
    if isinstance(item, np.ndarray):
        _require_pixels(item)
    elif not isinstance(item, str | bytes | bytearray | memoryview):
        raise TypeError(f"an image is a {type(item).__name__}; expected {EXPECTED}")
    return item, None


def _pixels_checked(content: Any) -> Any:
    """The content of a row: pixels of a wrong shape raise, as in a list; anything else may have no answer."""
    if isinstance(content, np.ndarray):
        _require_pixels(content)
    return content


def _require_pixels(pixels: np.ndarray) -> None:
    """Raises unless this is an image: pixels of any other range or order would get a wrong label."""
    shape = pixels.shape
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS)) or not pixels.size:
        raise ValueError(
            f"pixels have the shape {shape}: expected (height, width) or (height, width, channels), with 1, 3 or 4 "
            "channels"
        )
    if pixels.dtype.kind not in "iu":
        raise TypeError(f"pixels are {pixels.dtype}: expected integers from 0 to 255, such as uint8")
    if pixels.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 255):
        raise ValueError(f"pixels are from {pixels.min()} to {pixels.max()}: expected integers from 0 to 255")


def _checked_params(params: Mapping[str, Any]) -> tuple[int, bool, bool]:
    top_k = params.get("top_k") or 0
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: expected the number of labels to return, or 0 for none")
    return top_k, bool(params.get("probabilities_by_label")), bool(params.get("explain"))


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value))


def _to_bytes(content: Any) -> bytes:
    """The bytes of an image file; text is base64, as JSON requests hold it, and pixels become a PNG."""
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if isinstance(content, np.ndarray):
        _require_pixels(content)
        file = BytesIO()
        values = content.astype(np.uint8)
        gray = values.ndim == 3 and values.shape[2] == 1
        Image.fromarray(values[:, :, 0] if gray else values).save(file, "PNG", compress_level=0)
        return file.getvalue()
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
