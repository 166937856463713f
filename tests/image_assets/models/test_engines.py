"""Batches that fit memory, where it runs out for certain."""

import subprocess
import sys

import numpy as np
import pytest

from image_assets.models import torch_network
from image_assets.models.engines import in_fitting_batches, network_on

# A network that needs 38 MB for an image, in a process that may take 200 MB more.
IN_LITTLE_MEMORY = """
import resource
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from image_assets.models.engines import onnx_network

nodes = [
    helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
    helper.make_node("Concat", ["values"] * 64, ["many"], axis=3),
    helper.make_node("ReduceMean", ["many"], ["probabilities"], axes=[1, 2, 3], keepdims=0),
]
pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 224, 224, 3])
probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n"])
graph = helper.make_graph(nodes, "mean", [pixels], [probabilities])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), sys.argv[1])
network = onnx_network(sys.argv[1])
images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 224, 224, 3), np.uint8)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, resource.RLIM_INFINITY))
assert np.allclose(network(images), np.arange(8)), network(images)
"""


class Network:
    """Gives pixels back, as long as no more come than fit."""

    def __init__(self, fits: int) -> None:
        self.fits, self.asked = fits, []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.asked.append(len(pixels))
        if len(pixels) > self.fits or 255 in pixels:
            raise MemoryError
        return pixels.astype(np.float32)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_that_fits_stays() -> None:
    network = Network(fits=3)
    ask = in_fitting_batches(network, 16, MemoryError)
    pixels = np.arange(10, dtype=np.uint8)
    assert ask(pixels).tolist() == pixels.tolist()
    assert network.asked == [10, 5, 2, 2, 2, 2, 2]
    network.asked.clear()
    assert ask(pixels[:5]).tolist() == pixels[:5].tolist()
    assert network.asked == [2, 2, 1]


def test_an_image_that_never_fits_is_told_and_makes_no_other_batch_smaller() -> None:
    network = Network(fits=8)
    ask = in_fitting_batches(network, 8, MemoryError)
    with pytest.raises(MemoryError):
        ask(np.array([1, 2, 255, 3], np.uint8))
    network.asked.clear()
    ask(np.arange(8, dtype=np.uint8))
    assert network.asked == [8]


def test_onnx_runtime_goes_on_in_smaller_batches_where_memory_is_short(tmp_path) -> None:
    file = str(tmp_path / "mean.onnx")
    done = subprocess.run([sys.executable, "-c", IN_LITTLE_MEMORY, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'gpu': expected one of auto, cpu, cuda"):
        network_on("gpu", torch_network, "nowhere", "nowhere")
