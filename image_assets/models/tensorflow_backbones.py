"""Backbones as Keras has them."""

from functools import partial
from typing import TYPE_CHECKING, Any

from image_assets.models.backbone_weights import (
    download_timeout,
    go_on_untrained,
)
from image_assets.models.backbones import Backbone, block_ends
from image_assets.models.frameworks import TENSORFLOW
from resources.weight_files import SOURCES, weights_file

if TYPE_CHECKING:
    import keras


def build_backbone(backbone: Backbone, weights: str) -> tuple["keras.Model", str]:
    """The backbone from normalized colors on, and where its weights are from.

    Args:
        backbone: The backbone.
        weights: "auto", "imagenet", "none", or a folder with the backbone's weight file.

    Returns:
        A network from (n, side, side, 3) to what `to_embedding` takes, and "folder", "imagenet", "package" or
        "untrained".
    """
    import keras

    own = backbone.implementations[TENSORFLOW.name]
    if own.source == "lite":
        network, origin = _of_lite_package(backbone, weights)
    else:
        build = partial(
            getattr(keras.applications, own.model),
            input_shape=backbone.pixels_shape,
            include_top=False,
            **own.options,
        )
        network, origin = _with_weights(backbone, build, weights)
    if own.bgr and origin != "untrained":
        # The weights expect the colors the other way round: their first convolution is turned instead of every image.
        first = next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
        kernel, *others = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *others])
    if backbone.levels > 1:
        ends = block_ends(own.blocks, [layer.name for layer in network.layers])[-backbone.levels :]
        network = keras.Model(network.input, [network.get_layer(end).output for end in ends])
    return network, origin


def to_embedding(maps: "keras.KerasTensor | list[keras.KerasTensor]") -> "keras.KerasTensor":
    """The embedding (n, features) of a backbone's output (n, height, width, features), or of a list of levels."""
    from keras import layers

    if not isinstance(maps, list):
        return layers.GlobalAveragePooling2D(name="embedding")(maps)
    means = [layers.GlobalAveragePooling2D()(level) for level in maps]
    return layers.Concatenate(name="embedding")([layers.UnitNormalization()(mean) for mean in means])


def _with_weights(backbone: Backbone, build: "partial[keras.Model]", weights: str) -> tuple["keras.Model", str]:
    import keras

    own = backbone.implementations[TENSORFLOW.name]
    if weights in ("auto", "imagenet"):
        keras.config.disable_interactive_logging()
        try:
            with download_timeout():
                return build(weights=own.weights), "imagenet"
        except Exception as error:  # Keras has no narrower type for a download that failed
            if "URL fetch failure" not in str(error):
                raise
            go_on_untrained(backbone, TENSORFLOW.name, weights, error)
            weights = "none"
    if weights in SOURCES:
        return build(weights=None), "untrained"
    return build(weights=str(weights_file(weights, own.weight_files))), "folder"


def _of_lite_package(backbone: Backbone, weights: str) -> tuple["keras.Model", str]:
    """The package's network without its top, layer by layer as it is in PyTorch."""
    import keras
    from keras import layers
    from torch import nn

    from image_assets.models.torch_backbones import lite_network

    # Any: PyTorch has one type for modules of any kind, and Keras's layers return any.
    def normalized(maps: Any, convolution: Any, norm: Any, name: str) -> Any:
        settings = {"strides": convolution.stride, "padding": "same", "use_bias": False, "name": name}
        by_depth = convolution.groups > 1
        layer = (
            layers.DepthwiseConv2D(convolution.kernel_size, **settings)
            if by_depth
            else layers.Conv2D(convolution.out_channels, convolution.kernel_size, **settings)
        )
        normalization = layers.BatchNormalization(epsilon=norm.eps, name=f"{name}_norm")
        found = normalization(layer(maps))
        if origin != "untrained":
            kernel = convolution.weight.detach().numpy()  # (out, in, height, width)
            layer.set_weights([kernel.transpose(2, 3, 0, 1) if by_depth else kernel.transpose(2, 3, 1, 0)])
            arrays = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            normalization.set_weights([array.detach().numpy() for array in arrays])
        return found

    network, origin = lite_network(backbone.implementations[TENSORFLOW.name], weights)
    parts = dict(network.named_children())
    colors = keras.Input(backbone.pixels_shape)
    maps = normalized(colors, parts["_conv_stem"], parts["_bn0"], "stem")
    maps = layers.ReLU(6, name="stem_relu")(maps)
    for number, block in enumerate(parts["_blocks"].children()):
        start, name = maps, f"block{number}"
        own = [layer for layer in block.children() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        pairs = [*zip(own[::2], own[1::2], strict=True)]
        for part, (convolution, norm) in enumerate(pairs):
            maps = normalized(maps, convolution, norm, f"{name}_conv{part}")
            if part < len(pairs) - 1:  # not after the projection
                maps = layers.ReLU(6, name=f"{name}_relu{part}")(maps)
        if maps.shape == start.shape:
            maps = layers.Add(name=f"{name}_add")([start, maps])
    maps = normalized(maps, parts["_conv_head"], parts["_bn1"], "top")
    return keras.Model(colors, layers.ReLU(6, name="top_relu")(maps)), origin


def cut_in_two(
    model: "keras.Model", backbone: Backbone, blocks: int | None
) -> tuple["keras.Model | None", "keras.Model | None"]:
    """The part from pixels to the end of so many blocks, and the part from there to the embedding; None if empty."""
    import keras

    whole = keras.Model(model.input, model.get_layer("embedding").output)
    if blocks is None:
        return whole, None
    if blocks == 0:
        return None, whole
    features = features_of(model)
    ends = block_ends(backbone.implementations[TENSORFLOW.name].blocks, [layer.name for layer in features.layers])
    middle = features.get_layer(ends[blocks - 1]).output
    lower, upper = keras.Model(features.input, middle), keras.Model(middle, features.output)
    scaled = model.get_layer("scaled").output
    frozen = keras.Model(model.input, lower(scaled))
    between = keras.Input(middle.shape[1:])
    return frozen, keras.Model(between, to_embedding(upper(between)))


def fold_normalization(network: "keras.Model") -> None:
    """Move the scales of batch normalizations into the convolutions before them; the network computes the same.

    Steps of Adam do not depend on the scale of a weight, so their effect does. Libraries publish weights with the
    normalization, others fold it: folded, both are trained in the same way.
    """
    import keras
    import numpy as np

    before = {id(layer.output): layer for layer in network.layers}
    for norm in (layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)):
        convolution = before[id(norm.input)]
        if not isinstance(convolution, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            continue
        gamma, beta, mean, variance = norm.get_weights()
        scale = gamma / np.sqrt(variance + norm.epsilon)
        kernel, *bias = convolution.get_weights()
        # Kernels are (height, width, in, out), those by depth (height, width, in, 1).
        by_depth = isinstance(convolution, keras.layers.DepthwiseConv2D)
        convolution.set_weights([kernel * (scale[:, None] if by_depth else scale), *(each * scale for each in bias)])
        norm.set_weights(
            [np.ones_like(gamma), beta - mean * scale, np.zeros_like(mean), np.full_like(variance, 1 - norm.epsilon)]
        )


def features_of(model: "keras.Model") -> "keras.Model":
    """The backbone in a classifier."""
    import keras

    return next(layer for layer in model.layers if isinstance(layer, keras.Model))
