"""The backbones that a classifier can have: one row for each, with everything that the code needs to know of it."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOWNLOAD_TIMEOUT_SECONDS = 10
UNNAMED = "mobilenet_v2"  # what a version, a fingerprint or a folder of embeddings means that names no backbone


@dataclass(frozen=True)
class Implementation:
    """A backbone as one framework provides it."""

    model: str  # its name in the framework's collection of models: torchvision.models, keras.applications
    weights: str  # the name of its ImageNet weights there
    weight_file: str  # the name of a file with weights, in a folder that IMAGE_ASSETS_BACKBONE names
    # The weights expect colors from 0 to 1, minus the mean, divided by the deviation.
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """A network without its top. All frameworks must agree on the sizes."""

    name: str
    side_pixels: int  # width and height of the images that it takes
    features: int  # of an embedding: the channels of its last layer
    blocks: int  # that can be frozen or trained, from the input on
    max_onnx_bytes: int  # of a packaged edge model
    implementations: Mapping[str, Implementation]  # by framework
    last_layer: Callable[[Sequence[str], int], str]  # of a block, from the names of Keras's layers; blocks count from 0

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """The shape of one image: height, width, RGB."""
        return self.side_pixels, self.side_pixels, 3


def mobilenet_v2_last_layer(layers: Sequence[str], block: int) -> str:
    """The layer of Keras's MobileNetV2 that ends a block, counted as torchvision counts them."""
    if block in (0, 18):
        return "Conv1_relu" if block == 0 else "out_relu"
    prefix = "expanded_conv" if block == 1 else f"block_{block - 1}"
    # Blocks that keep the size end with the addition of their input, others with the projection.
    return [name for name in layers if name in (f"{prefix}_project_BN", f"{prefix}_add")][-1]


MOBILENET_V2 = Backbone(
    name="mobilenet_v2",
    side_pixels=224,
    features=1280,
    blocks=19,  # the first convolution, 17 inverted residuals, the last convolution
    max_onnx_bytes=15_000_000,  # float32 weights take 9 MB
    implementations={
        "tensorflow": Implementation(
            model="MobileNetV2",
            weights="imagenet",
            weight_file="mobilenet_v2_no_top.weights.h5",
            mean=(0.5, 0.5, 0.5),
            deviation=(0.5, 0.5, 0.5),
        ),
        "torch": Implementation(
            model="mobilenet_v2",
            weights="IMAGENET1K_V1",
            weight_file="mobilenet_v2_features.pth",
            mean=(0.485, 0.456, 0.406),  # ImageNet's
            deviation=(0.229, 0.224, 0.225),
        ),
    },
    last_layer=mobilenet_v2_last_layer,
)
BACKBONES = {backbone.name: backbone for backbone in (MOBILENET_V2,)}
CURRENT_BACKBONE = MOBILENET_V2  # what new versions are trained with


def backbone_of(stored: Mapping[str, Any], key: str = "backbone") -> Backbone:
    """The backbone named in `stored[key]`; MobileNetV2 if nothing is.

    A version's `classifier.json` has the name under `backbone`, its tags under `backbone_name` (the tag `backbone` is
    where its weights came from).
    """
    return BACKBONES[stored.get(key, UNNAMED)]


def name_in_digests(backbone: Backbone) -> list[str]:
    """What fingerprints and folder names include of a backbone's name; nothing for the one that needs no name."""
    return [] if backbone.name == UNNAMED else [backbone.name]


def weights_file(folder: str, name: str) -> Path:
    """The file of that name in the folder; a FileNotFoundError lists what the folder holds instead."""
    file = Path(folder) / name
    if not file.is_file():
        there = sorted(entry.name for entry in Path(folder).glob("*"))
        found = f"holds {', '.join(there[:10]) or 'nothing'}" if Path(folder).is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"{folder} {found}: expected a folder with {name}; name it in IMAGE_ASSETS_BACKBONE, "
            "or set that to auto, imagenet or none"
        )
    return file


@contextmanager
def download_timeout() -> Iterator[None]:
    """Let connections fail that stay silent for DOWNLOAD_TIMEOUT_SECONDS."""
    # Neither framework's download sets a timeout, and neither lets its caller set one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
