"""Backbones as PyTorch has them: of torchvision, of optional packages, of timm, or from an ONNX file."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from image_assets.models.backbone_weights import download_timeout, go_on_untrained, require_packages
from image_assets.models.backbones import Backbone, Implementation
from image_assets.models.external_backbones import input_layout
from image_assets.models.frameworks import TORCH
from resources.weight_files import SOURCES, weights_file

if TYPE_CHECKING:
    import torch
    from torch import nn

TRIED_IMAGES = 2  # more than one shows whether a network takes batches
TOLERANCE = 1e-3  # of an output, relative to the largest one


@dataclass(frozen=True)
class ConvolutionLayer:
    """A convolution without bias, and the normalization after it.

    Attributes:
        kernel: (out, in, height, width).
        strides: Of height and width.
        by_depth: Whether each channel has a kernel of its own.
        normalization: Scale, offset, mean and variance of each channel.
        epsilon: What is added to the variance.
    """

    kernel: np.ndarray
    strides: tuple[int, int]
    by_depth: bool
    normalization: tuple[np.ndarray, ...]
    epsilon: float


def build_backbone(backbone: Backbone, weights: str) -> tuple["OrderedDict[str, nn.Module]", str]:
    """The backbone's layers, and where its weights are from.

    Args:
        backbone: The backbone.
        weights: "auto", "imagenet", "none", or a folder with the backbone's weight file.

    Returns:
        `features`, a sequence of blocks from colors (n, 3, side, side) on, and what makes embeddings (n, features) of
        its output; and "folder", "imagenet", "package", "file" or "untrained".
    """
    from torch import nn

    from image_assets.models.torch_levels import Levels

    require_packages(backbone, TORCH.name)
    own = backbone.implementations[TORCH.name]
    build = {"collection": _of_torchvision, "lite": _of_lite_package, "timm": _of_timm, "onnx": _of_onnx}[own.source]
    features, neck, origin = build(backbone, own, weights)
    layers = OrderedDict[str, nn.Module](features=features)
    if backbone.levels > 1:
        layers["features"] = Levels(OrderedDict(features.named_children()), backbone.levels)
    elif not own.pools:
        layers["pooled"] = nn.AdaptiveAvgPool2d(1)
    if neck:
        layers["neck"] = neck
    layers["embedding"] = nn.Flatten(1)
    return layers, origin


def cut_in_two(model: "nn.Sequential", blocks: int | None) -> tuple["nn.Sequential", "nn.Sequential"]:
    """The part from pixels to the end of so many blocks, and the part from there to the embedding.

    With None, the first part is everything, and the second one returns its input; with 0, it is the other way round.
    """
    from torch import nn

    from image_assets.models.torch_levels import Levels

    layers = dict(model.named_children())
    before = [layers[name] for name in ("channels_first", "from_zero_to_one", "scaled")]
    after = [layers[name] for name in ("pooled", "neck", "embedding") if name in layers]
    features = layers["features"]
    if not blocks:
        whole, nothing = nn.Sequential(*before, features, *after), nn.Sequential()
        return (whole, nothing) if blocks is None else (nothing, whole)
    children = list(features.named_children())
    upper = OrderedDict(children[blocks:])
    rest = [Levels(upper, features.count)] if isinstance(features, Levels) else upper.values()
    return nn.Sequential(*before, *(block for _, block in children[:blocks])), nn.Sequential(*rest, *after)


def _of_torchvision(
    backbone: Backbone, own: Implementation, weights: str
) -> tuple["nn.Sequential", "nn.Module | None", str]:
    import torchvision
    from torch import nn
    from torchvision.models import get_model_weights

    network = torchvision.models.get_model(own.model)
    state, origin = _state(
        backbone, own, weights, lambda: get_model_weights(own.model)[own.weights].get_state_dict(progress=False)
    )
    modules = dict(network.named_modules())
    names = [name for name in modules if re.fullmatch(own.blocks, name)]
    if state:
        missing, _ = network.load_state_dict(state, strict=False)
        # Files may lack the top, and usually have it: only what becomes a part of the backbone matters.
        parts = tuple(f"{name}." for name in (*names, own.neck) if name)
        _require_none_missing(backbone, [name for name in missing if name.startswith(parts)])
    blocks = OrderedDict((name.removeprefix("features.").replace(".", "_"), modules[name]) for name in names)
    return nn.Sequential(blocks), modules[own.neck] if own.neck else None, origin


def _require_none_missing(backbone: Backbone, names: Sequence[str]) -> None:
    """Raise a ValueError if a file with weights lacks arrays of the backbone."""
    counters = "num_batches_tracked"  # which older files lack, and nothing here reads
    if lacking := [name for name in names if not name.endswith(counters)]:
        raise ValueError(
            f"the weights for {backbone.name} lack {len(lacking)} of its arrays, such as {lacking[0]}: expected a file "
            "as its library publishes it"
        )


def _of_lite_package(
    backbone: Backbone, own: Implementation, weights: str
) -> tuple["nn.Sequential", "nn.Module | None", str]:
    import torch
    from torch import nn

    code, packaged = (import_module(package.module) for package in own.packages)
    network = code.EfficientNet.from_name(own.model)
    for layer in network.modules():
        padding = getattr(layer, "static_padding", None)
        # A convolution pads faster than a layer before it: a training step takes a quarter less time.
        if isinstance(padding, nn.ZeroPad2d) and len({*padding.padding}) == 1:
            layer.padding, layer.static_padding = padding.padding[:2], nn.Identity()
    if weights != "none":
        weight_file = getattr(packaged, f"{own.model.title().replace('-', '')}ModelFile")
        network.load_state_dict(torch.load(weight_file.get_model_file_path(), weights_only=True))
    parts = dict(network.named_children())
    first = nn.Sequential(parts["_conv_stem"], parts["_bn0"], parts["_swish"])
    last = nn.Sequential(parts["_conv_head"], parts["_bn1"], parts["_swish"])
    blocks = nn.Sequential(first, *parts["_blocks"].children(), last)
    return blocks, None, "untrained" if weights == "none" else "package"


def lite_layers(backbone: Backbone, weights: str) -> tuple[list[list[ConvolutionLayer]], str]:
    """The convolutions of each block of an EfficientNet-Lite, for other frameworks, and where the weights are from."""
    from torch import nn

    blocks, _, origin = _of_lite_package(backbone, backbone.implementations[TORCH.name], weights)
    found = []
    for block in blocks:
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        found.append([_to_layer(*pair) for pair in zip(layers[::2], layers[1::2], strict=True)])
    return found, origin


def _to_layer(convolution: Any, norm: Any) -> ConvolutionLayer:  # Any: PyTorch has one type for modules of any kind
    arrays = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return ConvolutionLayer(
        convolution.weight.detach().numpy(),
        convolution.stride,
        convolution.groups > 1,
        tuple(array.detach().numpy() for array in arrays),
        norm.eps,
    )


def _of_timm(backbone: Backbone, own: Implementation, weights: str) -> tuple["nn.Sequential", "nn.Module | None", str]:
    from torch import nn

    timm = import_module("timm")  # an optional package, as onnx2torch is
    network = timm.create_model(own.model, pretrained=False, num_classes=0)
    state, origin = _state(
        backbone, own, weights, lambda: timm.create_model(own.model, pretrained=True, num_classes=0).state_dict()
    )
    if state:
        missing, _ = network.load_state_dict(timm.models.clean_state_dict(dict(state)), strict=False)
        _require_none_missing(backbone, missing)
    return nn.Sequential(network), None, origin


def _of_onnx(backbone: Backbone, own: Implementation, weights: str) -> tuple["nn.Sequential", "nn.Module | None", str]:
    import onnx
    import torchvision
    from torch import nn

    model = onnx.load(own.model)
    layout = input_layout(model, own.model)
    network = import_module("onnx2torch").convert(model).eval()
    _require_same_outputs(network, own.model, backbone.side_pixels, layout.channels_last, layout.integers)
    before = [torchvision.ops.Permute([0, 2, 3, 1])] if layout.channels_last else []
    return nn.Sequential(*before, network), None, "file"


def _require_same_outputs(network: "nn.Module", file: str, side: int, channels_last: bool, integers: bool) -> None:
    """Raise a ValueError unless the network converted from an ONNX file computes the same, for more than one image."""
    import numpy as np
    import onnxruntime
    import torch

    shape = (TRIED_IMAGES, side, side, 3) if channels_last else (TRIED_IMAGES, 3, side, side)
    colors = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32) / (1 if integers else 255)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    kind = np.uint8 if integers else np.float32
    expected = np.concatenate([np.asarray(session.run(None, {name: image[None].astype(kind)})[0]) for image in colors])
    with torch.no_grad():
        found = network(torch.from_numpy(colors)).numpy()
    if found.shape != expected.shape or not np.allclose(found, expected, atol=TOLERANCE * np.abs(expected).max()):
        raise ValueError(
            f"{file} cannot be a backbone: converted to PyTorch, it computes something else for {TRIED_IMAGES} images "
            "at once. Export it with a batch of variable size, without dropout or training mode"
        )


def fold_normalization(network: "nn.Module") -> None:
    """Move the scales of batch normalizations into the convolutions before them; the network computes the same.

    Steps of Adam do not depend on the scale of a weight, so their effect does. Libraries publish weights with the
    normalization, others fold it: folded, both are trained in the same way.
    """
    import torch
    from torch import nn

    layers = [layer for layer in network.modules() if [*layer.parameters(recurse=False)]]
    with torch.no_grad():
        for convolution, norm in pairwise(layers):
            if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            mean, variance = norm.running_mean, norm.running_var
            if mean is None or variance is None:
                continue
            scale = norm.weight / (variance + norm.eps).sqrt()
            convolution.weight.mul_(scale[:, None, None, None])
            if convolution.bias is not None:
                convolution.bias.mul_(scale)
            norm.bias.sub_(mean * scale)
            norm.weight.fill_(1)
            mean.zero_()
            variance.fill_(1 - norm.eps)


def _state(
    backbone: Backbone, own: Implementation, weights: str, download: "Callable[[], Mapping[str, torch.Tensor]]"
) -> "tuple[Mapping[str, torch.Tensor] | None, str]":
    """The weights by name, None for untrained ones, and where they are from."""
    import torch
    from safetensors.torch import load_file

    if weights == "none":
        return None, "untrained"
    if weights not in SOURCES:
        file = weights_file(weights, own.weight_files)
        if str(file).endswith(".safetensors"):
            return load_file(str(file)), "folder"
        return torch.load(str(file), weights_only=True), "folder"
    try:
        with download_timeout():
            return download(), "imagenet"
    except (OSError, RuntimeError) as error:
        go_on_untrained(backbone, TORCH.name, weights, error)
        return None, "untrained"
