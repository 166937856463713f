"""A version's ONNX file: a backbone with a head, or a whole network that gives the same probabilities."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from image_assets.models.calibration import log_softmax
from image_assets.models.engines import onnx_network
from image_assets.models.logged_models import DifferentAnswers, onnx_with_head, verified_onnx

BACKBONE = """<ir_version: 10, opset_import: ["" : 18]>
backbone (uint8[images, 8, 8, 3] pixels) => (float[images, 3] embedding) {
    values = Cast <to = 1> (pixels)
    channels_first = Transpose <perm = [0, 3, 1, 2]> (values)
    means = GlobalAveragePool (channels_first)
    embedding = Flatten (means)
}
"""
KERNEL, BIAS = np.array([[0.1, -0.1], [0.02, 0.0], [0.0, 0.03]]), np.array([0.5, -0.5])
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A backbone whose embedding is the mean of each color."""
    onnx.save(onnx.parser.parse_model(BACKBONE), tmp_path / "backbone.onnx")
    return tmp_path / "backbone.onnx"


def test_a_head_on_a_backbone_gives_probabilities_and_embeddings(backbone: Path) -> None:
    answers = onnx_network(onnx_with_head(backbone, KERNEL, BIAS))(PIXELS)
    embeddings = PIXELS.mean((1, 2))
    np.testing.assert_allclose(answers["embedding"], embeddings, rtol=1e-5)
    np.testing.assert_allclose(answers["probabilities"], np.exp(log_softmax(embeddings @ KERNEL + BIAS)), atol=1e-5)


def whole(backbone: Path) -> onnx.ModelProto:
    """A network as a framework exports it: with the probabilities as its only output."""
    network = onnx.load_from_string(onnx_with_head(backbone, KERNEL, BIAS))
    del network.graph.output[1]
    network.graph.node[3].output[0] = network.graph.node[4].input[0] = "flat"
    return network


def test_a_whole_network_gets_its_embedding_as_another_output(backbone: Path) -> None:
    expected = onnx_network(onnx_with_head(backbone, KERNEL, BIAS))
    written = onnx_network(verified_onnx(whole(backbone), lambda pixels: expected(pixels)["probabilities"], 8))
    for name, values in expected(PIXELS).items():
        np.testing.assert_array_equal(written(PIXELS)[name], values)


def test_an_export_that_computes_something_else_is_refused(backbone: Path) -> None:
    with pytest.raises(DifferentAnswers, match=r"probabilities differ by .* expected 0\.001 at most"):
        verified_onnx(whole(backbone), lambda pixels: np.full((len(pixels), 2), 0.5), 8)
