"""Weights with real batch normalization, as the frameworks publish them, act like those with a folded one."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_assets.images.pixels import to_pixels
from image_assets.models.backbones import MOBILENET_V2
from image_assets.models.epochs import Batch
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.ridge_head import fit_ridge_head
from tests.image_assets.conftest import in_a_process
from tests.support.photographs import PHOTOGRAPHS, WEIGHTS, photographs

pytestmark = [pytest.mark.training, pytest.mark.slow]
BACKBONE = replace(MOBILENET_V2, side_pixels=96)  # a pass takes a fifth of the time
TOLERANCE = 2e-3  # of the largest feature: statistics as small as ImageNet's amplify the rounding of float32
LABELS = ("daisy", "roses")
IMAGES = 12  # of each label


class OneRank:
    """The collective of a training with one process."""

    rank = local_rank = 0
    size = 1

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values


def statistics(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, ...]:
    """Scale, mean and variance of a normalization, as wide apart as those of networks trained on ImageNet."""
    return np.exp(rng.normal(0, 0.5, channels)), rng.normal(0, 1, channels), np.exp(rng.normal(-1, 1.5, channels))


def unfolded(of: dict[str, np.ndarray], epsilon: float, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """What to multiply the channels of a convolution by, and a normalization that undoes it."""
    scale, mean, variance = statistics(rng, len(of["mean"]))
    before, after = of["scale"] / np.sqrt(of["variance"] + epsilon), scale / np.sqrt(variance + epsilon)
    shift = of["shift"] - before * of["mean"] + after * mean
    return before / after, {"scale": scale, "shift": shift, "mean": mean, "variance": variance}


def write_unfolded(framework: str, folder: Path) -> None:
    """A weight file with real batch normalization, made from the one of folded weights, under one of its names."""
    rng = np.random.default_rng(0)
    if framework == "torch":
        import torch

        state = torch.load(WEIGHTS / "mobilenet_v2_features.pth", weights_only=True)
        parts = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
        kernels = [name for name, array in state.items() if array.ndim == 4]
        norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
        for kernel, norm in zip(kernels, norms, strict=True):
            found = {name: state[norm + part].double().numpy() for name, part in parts.items()}
            factor, made = unfolded(found, 1e-5, rng)
            state[kernel] = (state[kernel].double() * torch.from_numpy(factor)[:, None, None, None]).float()
            state |= {norm + part: torch.from_numpy(made[name]).float() for name, part in parts.items()}
        torch.save(state, folder / "mobilenet_v2-b0353104.pth")
        return
    import keras

    file = str(WEIGHTS / "mobilenet_v2_no_top.weights.h5")
    network = keras.applications.MobileNetV2(BACKBONE.pixels_shape, include_top=False, weights=file)
    layers = network.layers
    for norm in (layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)):
        convolution = next(layer for layer in layers if layer.output is norm.input)
        names = ("scale", "shift", "mean", "variance")
        found = dict(zip(names, (array.astype(float) for array in norm.get_weights()), strict=True))
        factor, made = unfolded(found, norm.epsilon, rng)
        (kernel,) = convolution.get_weights()
        depthwise = kernel.shape[2] == len(factor) and kernel.shape[3] == 1
        convolution.set_weights([kernel * (factor[:, None] if depthwise else factor)])
        norm.set_weights([made[name] for name in names])
    network.save_weights(folder / "mobilenet_v2_no_top.weights.h5")


def embeddings_and_kernels(framework: str, weights: str, pixels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The embeddings of images by a backbone with these weights, and its kernels as fine-tuning gets them."""
    model, origin = FRAMEWORKS[framework].training.build_model(2, BACKBONE, weights, seed=0)
    assert origin == "folder"
    found = embeddings(framework, model, pixels)
    backbones = import_module(f"image_assets.models.{framework}_backbones")
    features = model.get_submodule("features") if framework == "torch" else backbones.features_of(model)
    backbones.fold_normalization(features)
    arrays = features.parameters() if framework == "torch" else features.weights
    return found, [np.array(of.detach() if framework == "torch" else of) for of in arrays if len(of.shape) == 4]


# Any: the framework's model.
def embeddings(framework: str, model: Any, pixels: np.ndarray) -> np.ndarray:
    """The embeddings of images by the model's backbone."""
    if framework == "torch":
        import torch

        with torch.no_grad():
            return model[:-2](torch.from_numpy(pixels)).numpy()
    from image_assets.models.tensorflow_backbones import cut_in_two

    embedder, _ = cut_in_two(model, BACKBONE, None)
    assert embedder
    return np.asarray(embedder(pixels, training=False))


def both(framework: str, folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings with folded and with unfolded weights; both are the same network to a fine-tuning."""
    write_unfolded(framework, folder)
    folded, real = (embeddings_and_kernels(framework, str(each), pixels) for each in (WEIGHTS, folder))
    for kernel, other in zip(folded[1], real[1], strict=True):
        assert np.abs(kernel - other).max() <= 1e-4 * np.abs(kernel).max()
    return folded[0], real[0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_unfolded_weights_give_the_same_embeddings_and_the_same_head(tmp_path: Path, framework: str) -> None:
    if not WEIGHTS.is_dir() or not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no weights in {WEIGHTS}, or no photographs in {PHOTOGRAPHS}")
    files = [file for label in LABELS for file in photographs(label)[:IMAGES]]
    pixels = np.stack([to_pixels(file.read_bytes(), BACKBONE.side_pixels) for file in files])
    folded, real = in_a_process(both, framework, tmp_path, pixels)
    assert not np.array_equal(folded, real)
    assert np.abs(folded - real).max() <= TOLERANCE * np.abs(folded).max()
    label_indexes = np.repeat(np.arange(len(LABELS)), IMAGES)
    heads = [
        fit_ridge_head(
            *([Batch(of[start::2], label_indexes[start::2])] for start in (0, 1)), np.ones(len(LABELS)), OneRank()
        )
        for of in (folded, real)
    ]
    assert heads[0].strength == heads[1].strength
    assert np.abs(heads[0].outputs(folded) - heads[1].outputs(real)).max() < 0.01
