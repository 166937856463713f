"""What all contestants share when they predict, each in its own environment: a few images first, then all.

The first few measure the cost of a cold start: imports, processes, loading the model. Peers use the project's weights,
engine and decoding function.
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.task import Task, seconds_since_start, timed

FIRST, ALL = "first", "all"  # folders in a task's source: homes with a few images and with all of them
FIRST_IMAGES = 64
BATCH_IMAGES, SIDE_PIXELS = 32, 224  # as in the project's classifier
ONNX, TORCHSCRIPT, LABELS = "network.onnx", "network.pt", "labels.json"
ONNX_IMAGES = 8  # per batch: more would take more memory and be no faster
RECIPE_MODEL = "recipe_{}"  # name of the registered model with the recipe's pyfunc, by framework
GIBIBYTE = 1 << 30


def predict_twice(task: Task, predict: Callable[[Path, Path], None]) -> None:
    """Call `predict(home, folder)` for the few images, then, timed, for all of them."""
    source, target = Path(task.source), Path(task.target)
    predict(source / FIRST, target / FIRST)
    first_seconds = seconds_since_start()
    with timed() as figures:
        predict(source / ALL, target / ALL)
        figures["first_seconds"] = first_seconds


def landing_in(home: Path) -> Path:
    """The landing folder of a home."""
    return Path((home / "landing_folder").read_text().strip())


def network_folder(task: Task) -> Path:
    """The folder with the network for peers."""
    return Path(task.source) / "network"


def torchscript_network(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A frozen TorchScript, with the allocator settings of the project's classifier, which matter as much."""
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
    """The network, loaded into memory, computing with the given number of threads."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.labels: list[str] = json.loads((folder / LABELS).read_text())
        file = folder / ONNX
        # Takes pixels uint8 (n, 224, 224, 3), returns probabilities (n, labels).
        self.probabilities = (
            onnx_network(file, threads) if file.exists() else torchscript_network(folder / TORCHSCRIPT, threads)
        )

    def answers(self, contents: Sequence[bytes]) -> Iterator[np.ndarray]:
        """The probabilities of each image, computed in batches."""
        for start in range(0, len(contents), BATCH_IMAGES):
            yield from self.probabilities(np.stack([decoded(of) for of in contents[start : start + BATCH_IMAGES]]))

    def rows(self, paths: Sequence[str], probabilities: Sequence[np.ndarray]) -> dict[str, list]:
        """The predictions as columns."""
        best = [int(of.argmax()) for of in probabilities]
        return {
            "path": list(paths),
            "label": [self.labels[index] for index in best],
            "probability": [float(of[index]) for of, index in zip(probabilities, best, strict=True)],
            "probabilities": [of.tolist() for of in probabilities],
        }


def decoded(content: bytes) -> np.ndarray:
    """The pixels of an image, decoded by the project's own function."""
    from image_assets.images.pixels import to_pixels

    return to_pixels(content, SIDE_PIXELS)
