"""What computes a version's network: ONNX Runtime on a CPU, the framework that it was trained in on a GPU.

This file stands alone: it is also stored beside every model version and loaded from there, and so is the framework's
file, such as `torch_network.py`.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

DEVICES = ("auto", "cpu", "cuda")
GPU_BATCH_IMAGES = 128

# Pixels (n, side, side, 3) uint8 to `probabilities` (n, labels) and `embedding` (n, features), both float32.
Network = Callable[[np.ndarray], dict[str, np.ndarray]]


class NetworkCode(Protocol):
    """The stand-alone file of a framework, as a module."""

    PACKAGE: str

    def count_gpus(self) -> int:
        """How many GPUs the framework finds."""
        ...

    def load_network(self, folder: str, device: str) -> tuple[Network, type[Exception]]:
        """The network of an MLflow model, and the error it raises when the device's memory runs out."""
        ...


def network_on(device: str, framework: NetworkCode, model: str, onnx: str) -> Network:
    """A version's network on a device.

    Args:
        device: `cpu`, `cuda`, or `auto` for a GPU if the framework finds one.
        framework: The stand-alone file of the framework that the version was trained in.
        model: The folder of the MLflow model in the framework's own flavor, which a GPU computes.
        onnx: The ONNX file of the same network, which a CPU computes.
    """
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}: expected one of {', '.join(DEVICES)}")
    use_assigned_gpu()
    if device == "auto":
        # Frameworks take seconds to load: skip that if there is no driver or the framework is not installed.
        possible = shutil.which("nvidia-smi") and importlib.util.find_spec(framework.PACKAGE)
        device = "cuda" if possible and framework.count_gpus() else "cpu"
    if device == "cpu":
        return onnx_network(onnx)
    if not framework.count_gpus():
        raise ValueError(
            f"device is 'cuda', but {framework.PACKAGE} finds no GPU: add one, or use the device 'auto' or 'cpu'"
        )
    network, out_of_memory = framework.load_network(model, device)
    return in_fitting_batches(network, GPU_BATCH_IMAGES, out_of_memory)


def use_assigned_gpu() -> None:
    """Restrict this process to the GPU that Spark assigned to its task; call it before a framework looks for GPUs."""
    spark = sys.modules.get("pyspark")
    task = spark.TaskContext.get() if spark else None
    if task and "gpu" in task.resources():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.resources()["gpu"].addresses)


def in_fitting_batches(network: Network, images: int, out_of_memory: type[Exception]) -> Network:
    """The network in batches of at most `images` images, halved each time that memory runs out.

    Later calls start with the size that fit.
    """
    largest = images

    def outputs(pixels: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal largest
        answers, done, fitting = [], 0, largest
        while done < len(pixels):
            batch = pixels[done : done + fitting]
            try:
                answers.append(network(batch))
            except out_of_memory:
                if len(batch) == 1:
                    raise
                # Half of what was tried, which may be less than `fitting` in the last batch.
                fitting = len(batch) // 2
            else:
                done += len(batch)
        # Only now: if a single image does not fit, the others keep their batch size.
        largest = fitting
        return joined(answers)

    return outputs


def joined(answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several batches, one after the other."""
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def thread_count() -> int:
    """How many threads a version uses on the CPU: OMP_NUM_THREADS if set, else one per core."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1


class Threads:
    """As many threads as `thread_count`, also in processes that are forked later: threads are not forked."""

    def __init__(self, name: str) -> None:
        self._name, self._process, self._pool = name, 0, None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """The function's results, in order."""
        if self._pool is None or self._process != os.getpid():
            self._process, self._pool = os.getpid(), ThreadPoolExecutor(thread_count(), self._name)
        return self._pool.map(function, items)


def onnx_network(file: str | bytes) -> Network:
    """The network of an ONNX file, or of its content, on the CPU, one image per thread.

    ONNX Runtime's own threads share one image, and wait for each other in busy loops: that takes twice the CPU time.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; logging them as well would print each twice
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    threads = Threads("network")
    names = [output.name for output in session.get_outputs()]

    def answer(image: np.ndarray) -> dict[str, np.ndarray]:
        answers = session.run(names, {"pixels": image[np.newaxis]})
        return {name: np.asarray(of) for name, of in zip(names, answers, strict=True)}

    return lambda pixels: joined([*threads.map(answer, pixels)])
