"""Predictions as every contestant makes them, each in an environment of its own: of a few images first, then of all.

The few come to what a start costs: imports, processes, the loading of the model. Peers run the project's own weights in
the project's own engine, on pixels decoded by the project's own function.
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.task import Task, seconds_since_start, timed

FIRST, ALL = "first", "all"  # folders of a task's source: homes of a few images and of all
FIRST_IMAGES = 64
BATCH_IMAGES, SIDE_PIXELS = 32, 224  # as the project's classifier has it
ONNX, TORCHSCRIPT, LABELS = "network.onnx", "network.pt", "labels.json"
ONNX_IMAGES = 8  # at once: more of them take more memory and are no faster
RECIPE_MODEL = "recipe_{}"  # the registered model of a framework, as the recipe wraps it
GIBIBYTE = 1 << 30


def predict_twice(task: Task, predict: Callable[[Path, Path], None]) -> None:
    """Let `predict` write predictions of a home's images to a folder: of the few, and, which is timed, of all."""
    source, target = Path(task.source), Path(task.target)
    predict(source / FIRST, target / FIRST)
    first_seconds = seconds_since_start()
    with timed() as told:
        predict(source / ALL, target / ALL)
        told["first_seconds"] = first_seconds


def landing_in(home: Path) -> Path:
    """The landing folder that a home was made for."""
    return Path((home / "landing_folder").read_text().strip())


def network_folder(task: Task) -> Path:
    """Where the network for peers is."""
    return Path(task.source) / "network"


def torchscript_network(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A frozen TorchScript, the allocator set as the project's classifier sets it: that is worth as much."""
    import torch

    trim_threshold, mmap_threshold = -1, -3
    for parameter in (trim_threshold, mmap_threshold):
        ctypes.CDLL(None).mallopt(parameter, GIBIBYTE)
    torch.set_num_threads(threads)
    network = torch.jit.load(file)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return probabilities


def onnx_network(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()

    def probabilities(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + ONNX_IMAGES] for start in range(0, len(images), ONNX_IMAGES)]
        return np.concatenate([np.asarray(session.run(None, {pixels.name: part})[0]) for part in parts])

    return probabilities


class Network:
    """The network in memory, with as many threads as are named."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.labels: list[str] = json.loads((folder / LABELS).read_text())
        file = folder / ONNX
        # Pixels (n, 224, 224, 3) uint8 in, probabilities (n, labels) out.
        self.probabilities = (
            onnx_network(file, threads) if file.exists() else torchscript_network(folder / TORCHSCRIPT, threads)
        )

    def answers(self, contents: Sequence[bytes]) -> Iterator[np.ndarray]:
        """The probabilities of each image, batch by batch."""
        for start in range(0, len(contents), BATCH_IMAGES):
            yield from self.probabilities(np.stack([decoded(of) for of in contents[start : start + BATCH_IMAGES]]))

    def rows(self, paths: Sequence[str], probabilities: Sequence[np.ndarray]) -> dict[str, list]:
        """Predictions in columns."""
        best = [int(of.argmax()) for of in probabilities]
        return {
            "path": list(paths),
            "label": [self.labels[index] for index in best],
            "probability": [float(of[index]) for of, index in zip(probabilities, best, strict=True)],
            "probabilities": [of.tolist() for of in probabilities],
        }


def decoded(content: bytes) -> np.ndarray:
    """The pixels of an image, by the project's own function."""
    from image_assets.images.pixels import to_pixels

    return to_pixels(content, SIDE_PIXELS)
