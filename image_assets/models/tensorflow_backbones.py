"""Backbones as Keras has them."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from image_assets.models.backbone_weights import download_timeout, go_on_untrained, require_packages
from image_assets.models.backbones import Backbone, block_ends
from image_assets.models.frameworks import TENSORFLOW
from image_assets.models.torch_backbones import lite_layers
from resources.processes.child_process import end_with_parent
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

    require_packages(backbone, TENSORFLOW.name)
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

    # In another process: two frameworks in one take more memory, and their libraries for GPUs may not get along.
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),)) as process:
        blocks, origin = process.submit(lite_layers, backbone, weights).result()
    colors = keras.Input(backbone.pixels_shape)
    maps: Any = colors  # Any: Keras's layers return any
    for number, block in enumerate(blocks):
        start = maps
        for part, layer in enumerate(block):
            name = f"block{number}_conv{part}"
            settings = {"strides": layer.strides, "padding": "same", "use_bias": False, "name": name}
            out, _, *size = layer.kernel.shape
            convolution = (
                layers.DepthwiseConv2D(size, **settings) if layer.by_depth else layers.Conv2D(out, size, **settings)
            )
            normalization = layers.BatchNormalization(epsilon=layer.epsilon, name=f"{name}_norm")
            maps = normalization(convolution(maps))
            if origin != "untrained":
                order = (2, 3, 0, 1) if layer.by_depth else (2, 3, 1, 0)
                convolution.set_weights([layer.kernel.transpose(order)])
                normalization.set_weights([*layer.normalization])
            if part < len(block) - 1 or len(block) == 1:  # not after the projection that ends most blocks
                maps = layers.ReLU(6, name=f"block{number}_relu{part}")(maps)
        if maps.shape == start.shape:
            maps = layers.Add(name=f"block{number}_add")([start, maps])
    return keras.Model(colors, maps), origin


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
