"""Batches that fit memory, where it runs out for certain, and images that are computed one by one."""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from image_assets.models import torch_network
from image_assets.models.engines import Threads, in_fitting_batches, network_on, onnx_network


class Network:
    """Gives pixels back, as long as no more come than fit."""

    def __init__(self, fits: int) -> None:
        self.fits, self.asked = fits, []

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.asked.append(len(pixels))
        if len(pixels) > self.fits or 255 in pixels:
            raise MemoryError
        return {"probabilities": pixels.astype(np.float32)}


def test_a_batch_that_does_not_fit_is_halved_and_the_size_that_fits_stays() -> None:
    network = Network(fits=3)
    ask = in_fitting_batches(network, 16, MemoryError)
    pixels = np.arange(10, dtype=np.uint8)
    assert ask(pixels)["probabilities"].tolist() == pixels.tolist()
    assert network.asked == [10, 5, 2, 2, 2, 2, 2]
    network.asked.clear()
    assert ask(pixels[:5])["probabilities"].tolist() == pixels[:5].tolist()
    assert network.asked == [2, 2, 1]


def test_an_image_that_never_fits_is_told_and_makes_no_other_batch_smaller() -> None:
    network = Network(fits=8)
    ask = in_fitting_batches(network, 8, MemoryError)
    with pytest.raises(MemoryError):
        ask(np.array([1, 2, 255, 3], np.uint8))
    network.asked.clear()
    ask(np.arange(8, dtype=np.uint8))
    assert network.asked == [8]


def test_an_image_gets_the_same_answer_whatever_is_beside_it_and_however_many_threads_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "mean.onnx")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["probabilities"], axes=[1, 2], keepdims=0),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 32, 32, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "mean", [pixels], [probabilities])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    alone = onnx_network(file)
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        answers = onnx_network(file)(images)["probabilities"]
        np.testing.assert_allclose(answers, images.mean((1, 2)), rtol=1e-5)
        assert (answers == [alone(image[np.newaxis])["probabilities"][0] for image in images]).all()


def test_threads_run_in_a_process_that_is_forked_later() -> None:
    threads = Threads("test")
    assert [*threads.map(abs, [-1, 2])] == [1, 2]
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit([*threads.map(abs, [-1])][0]))
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 1


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'gpu': expected one of auto, cpu, cuda"):
        network_on("gpu", torch_network, "nowhere", "nowhere")
