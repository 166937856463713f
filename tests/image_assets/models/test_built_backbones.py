"""Every row of the backbones' table describes the network that each framework builds."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_assets.models.backbones import BACKBONES, Backbone, to_backbone
from image_assets.models.frameworks import FRAMEWORKS
from tests.support.onnx_files import write_onnx

pytestmark = [pytest.mark.training, pytest.mark.slow]
PAIRS = [(name, framework) for name, row in BACKBONES.items() for framework in row.implementations]
SQUARES = 7
SIDE = 64  # instead of a row's own: blocks and features do not depend on it, and a pass takes a tenth of the time
TOLERANCE = 1e-3  # of the largest value


def lacking(backbone: Backbone, framework: str) -> list[str]:
    """The optional packages that are not installed."""
    return [package.name for package in backbone.implementations[framework].packages if not find_spec(package.module)]


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A process for each framework: two in one do not get along."""
    started = {framework: ProcessPoolExecutor(1, get_context("spawn")) for framework in FRAMEWORKS}
    yield started
    for process in started.values():
        process.shutdown()


def noise(side_pixels: int) -> np.ndarray:
    """Two images of squares in random colors."""
    colors = np.random.default_rng(0).integers(0, 256, (2, SQUARES, SQUARES, 3), np.uint8)
    square = np.ones((1, -(-side_pixels // SQUARES), -(-side_pixels // SQUARES), 1), np.uint8)
    return np.kron(colors, square)[:, :side_pixels, :side_pixels]


def statistics(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a normalization, float32."""
    rng = np.random.default_rng(channels)
    return rng.normal(0, 0.1, channels).astype(np.float32), rng.uniform(0.5, 1.5, channels).astype(np.float32)


def cut_network(backbone: Backbone, framework: str, frozen: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many blocks a network has, its embeddings in one go, and those by way of its frozen blocks."""
    if framework == "tensorflow":
        import keras

        # A deep network that is not trained multiplies rounding errors, a billion times in efficientnet_v2_s.
        keras.config.set_floatx("float64")
    model, _ = FRAMEWORKS[framework].training.build_model(2, backbone, "none", seed=0)
    pixels = noise(backbone.side_pixels)
    if framework == "torch":
        import torch
        from torch import nn

        from image_assets.models.torch_backbones import cut_in_two, fold_normalization

        layers = dict(model.named_children())
        for norm in (module for module in layers["features"].modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean, norm.running_var = map(torch.from_numpy, statistics(norm.num_features))
        embedder, _ = cut_in_two(model, None)
        lower, upper = cut_in_two(model, frozen)
        with torch.no_grad():
            whole, parts = (layers(torch.from_numpy(pixels)).numpy() for layers in (embedder, lower.append(upper)))
            fold_normalization(layers["features"])
            folded = embedder(torch.from_numpy(pixels)).numpy()
        assert np.abs(whole - folded).max() <= TOLERANCE * np.abs(whole).max()
        return len(layers["features"]), whole, parts
    import keras

    from image_assets.models.backbones import block_ends
    from image_assets.models.tensorflow_backbones import cut_in_two, features_of, fold_normalization

    for norm in features_of(model).layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            gamma, beta, mean, _ = norm.get_weights()
            norm.set_weights([gamma, beta, *statistics(len(mean))])
    names = [layer.name for layer in features_of(model).layers]
    embedder, _ = cut_in_two(model, backbone, None)
    lower, upper = cut_in_two(model, backbone, frozen)
    assert embedder
    assert lower
    assert upper
    whole, parts = np.asarray(embedder(pixels)), np.asarray(upper(lower(pixels)))
    fold_normalization(features_of(model))
    assert np.abs(whole - np.asarray(embedder(pixels))).max() <= TOLERANCE * np.abs(whole).max()
    return len(block_ends(backbone.implementations[framework].blocks, names)), whole, parts


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_row_describes_its_network(processes: dict[str, ProcessPoolExecutor], name: str, framework: str) -> None:
    backbone = BACKBONES[name]
    if packages := lacking(backbone, framework):
        pytest.skip(f"{' and '.join(packages)} not installed")
    frozen, small = backbone.blocks // 2, replace(backbone, side_pixels=SIDE)
    blocks, whole, parts = processes[framework].submit(cut_network, small, framework, frozen).result()
    assert blocks == backbone.blocks
    assert whole.shape == (2, backbone.features)
    assert np.abs(whole - parts).max() <= TOLERANCE * np.abs(whole).max()
    # An untrained network may make little of an image, but something.
    assert np.abs(whole[0] - whole[1]).max() > 0


def packaged_embeddings(name: str, framework: str) -> np.ndarray:
    """Embeddings by a backbone with the weights of its package."""
    backbone = BACKBONES[name]
    model, origin = FRAMEWORKS[framework].training.build_model(2, backbone, "imagenet", seed=0)
    assert origin == "package"
    pixels = noise(backbone.side_pixels)
    if framework == "tensorflow":
        from image_assets.models.tensorflow_backbones import cut_in_two as cut_keras

        embedder, _ = cut_keras(model, backbone, None)
        assert embedder
        return np.asarray(embedder(pixels))
    import torch

    from image_assets.models.torch_backbones import cut_in_two

    with torch.no_grad():
        return cut_in_two(model, None)[0](torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize(
    "name", [name for name, row in BACKBONES.items() if row.implementations["torch"].packaged_weights]
)
def test_weights_of_a_package_make_the_same_embeddings_in_both_frameworks(
    processes: dict[str, ProcessPoolExecutor], name: str
) -> None:
    if packages := lacking(BACKBONES[name], "torch"):
        pytest.skip(f"{' and '.join(packages)} not installed")
    answers = [processes[framework].submit(packaged_embeddings, name, framework) for framework in FRAMEWORKS]
    one, other = (answer.result() for answer in answers)
    assert np.abs(one - other).max() <= TOLERANCE * np.abs(one).max()
    assert np.abs(one[0] - one[1]).max() > TOLERANCE


def external_embeddings(name: str, folder: str) -> tuple[np.ndarray, bool, list[str]]:
    """Embeddings by a network that has no row, whether other images change them, and the layers of the model."""
    import torch

    backbone = to_backbone(name)
    model, origin = FRAMEWORKS["torch"].training.build_model(2, backbone, folder, seed=0)
    assert origin == ("file" if name.startswith("onnx:") else "untrained")
    with torch.no_grad():
        found = model[:-2](torch.from_numpy(noise(backbone.side_pixels))).numpy()
    assert found.shape == (2, backbone.features)
    return found, bool(np.abs(found[0] - found[1]).max() > 0), list(dict(model.named_children()))


def test_a_network_of_timm_is_a_backbone(processes: dict[str, ProcessPoolExecutor]) -> None:
    if not find_spec("timm"):
        pytest.skip("timm not installed")
    _, differ, layers = processes["torch"].submit(external_embeddings, "timm:resnet10t", "none").result()
    assert differ
    assert "pooled" not in layers
    with pytest.raises(ValueError, match="named 'resnet18x': did you mean .*resnet18.*? `timm.list_pretrained"):
        to_backbone("timm:resnet18x")


def test_an_onnx_file_is_a_backbone(processes: dict[str, ProcessPoolExecutor], tmp_path: Path) -> None:
    if not find_spec("onnx2torch"):
        pytest.skip("onnx2torch not installed")
    name = write_onnx(tmp_path / "some.onnx", ["n", 3, 32, 32], ["n", 8, 8, 8], mean=[0.5] * 3, std=[0.25] * 3)
    found, differ, layers = processes["torch"].submit(external_embeddings, name, "none").result()
    assert differ
    assert "pooled" in layers
    kernel = np.random.default_rng(0).normal(size=(8, 3, 1, 1)).astype(np.float32)[:, :, 0, 0]
    colors = (noise(32)[:, ::4, ::4] / 255 - 0.5) / 0.25
    assert np.allclose(found, (colors @ kernel.T).mean(axis=(1, 2)), atol=1e-4)


def published(model: str, weights: str) -> dict[str, Any]:
    """What torchvision says of weights."""
    from torchvision.models import get_model_weights

    found = get_model_weights(model)[weights]
    transform = found.transforms()
    return {
        "url": found.url,
        "side": transform.crop_size[0],
        "mean": tuple(transform.mean),
        "deviation": tuple(transform.std),
    }


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if "torch" in row.implementations])
def test_a_row_says_what_torchvision_says(processes: dict[str, ProcessPoolExecutor], name: str) -> None:
    own = BACKBONES[name].implementations["torch"]
    if own.source != "collection":
        pytest.skip("not of torchvision")
    stated = processes["torch"].submit(published, own.model, own.weights).result()
    side = BACKBONES[name].side_pixels
    assert stated == {"url": own.url, "side": side, "mean": own.mean, "deviation": own.deviation}
