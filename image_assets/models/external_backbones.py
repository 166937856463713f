"""Backbones that have no row of their own: what a network of the package timm, or an ONNX file, says about itself."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any  # Any: JSON

if TYPE_CHECKING:
    import onnx

TIMM_PREFIX, ONNX_PREFIX = "timm:", "onnx:"
PIXELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # mean and deviation: colors from 0 to 255 as they are
TIMM_SECONDS = 300  # its process usually takes a few, but imports a framework, perhaps from a slow disk

# Prints what timm knows of a network, which is built without memory for its weights. In a process of its own, because
# timm loads a framework, which must not be in the process that schedules runs.
TIMM_PROGRAM = """
import json, sys, timm, torch
name = sys.argv[1]
if not timm.is_model(name):
    print(json.dumps({"names": timm.list_models() + timm.list_pretrained()}))
else:
    config = timm.get_pretrained_cfg(name)
    config = config.to_dict() if config else {}
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    features = getattr(network, "head_hidden_size", None) or network.num_features
    known = {key: config.get(key) for key in ("input_size", "mean", "std", "hf_hub_id")}
    print(json.dumps({**known, "features": features}))
"""


@dataclass(frozen=True)
class ExternalNetwork:
    """What is read from a network.

    Attributes:
        side_pixels: Width and height of the images that it takes.
        features: The length of an embedding.
        mean: Subtracted from colors from 0 to 1; None: ImageNet's.
        deviation: What they are then divided by; None: ImageNet's.
        pools: Whether its output is (n, features), not yet to be averaged over positions.
        url: Where its weights can be downloaded; empty if they need no download.
        files: Names of files with its weights.
    """

    side_pixels: int
    features: int
    mean: tuple[float, float, float] | None
    deviation: tuple[float, float, float] | None
    pools: bool
    url: str = ""
    files: tuple[str, ...] = ()


@cache
def timm_description(name: str, side_pixels: int) -> ExternalNetwork:
    """What timm knows of a network; a ValueError if it has none of that name, an ImportError without timm.

    Args:
        name: The name in timm.
        side_pixels: The size of images for networks that take any.
    """
    if not find_spec("timm"):
        raise ImportError(missing_package(f"{TIMM_PREFIX}{name}", ["timm"]))
    command = [sys.executable, "-c", TIMM_PROGRAM, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"timm did not describe {name!r} within {TIMM_SECONDS} seconds: try again when the machine is less busy; "
            f"if that does not help, `{sys.executable} -c 'import timm'` shows whether the package can be imported"
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"]
        raise ValueError(f"timm cannot describe {name!r}: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "names" in found:
        close = get_close_matches(name, found["names"], n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"timm has no network named {name!r}: {hint}`timm.list_pretrained()` lists all")
    hub = found["hf_hub_id"]
    return ExternalNetwork(
        side_pixels=(found["input_size"] or (3, side_pixels))[1],
        features=found["features"],
        mean=_color(found["mean"], name, "mean"),
        deviation=_color(found["std"], name, "std"),
        pools=True,
        url=f"https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else "",
        files=(f"{name}.safetensors", f"{name}.pth"),
    )


@cache
def onnx_description(path: str, side_pixels: int) -> ExternalNetwork:
    """What an ONNX file says of its network; a ValueError or FileNotFoundError says what is wrong with it.

    The input is a batch of images, channels first or last, as integers from 0 to 255, or as floating-point colors,
    normalized with ImageNet's mean and deviation. `mean` and `std` in the file's metadata, JSON lists for colors from 0
    to 1, take precedence. The output is (n, features), or (n, features, height, width), which is averaged.
    """
    import onnx

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"backbone is {ONNX_PREFIX}{path!s}, which is not a file: expected an ONNX file")
    model = onnx.load(file, load_external_data=False)
    layout = input_layout(model, path)
    shape = _shape(onnx.shape_inference.infer_shapes(model).graph.output[0])
    if len(shape) not in (2, 4) or not shape[1]:
        raise ValueError(
            f"{path} has an output of shape {shape}: expected (images, features) or (images, features, height, width) "
            "with a fixed number of features; export the network without its last layer"
        )
    stated = {entry.key: entry.value for entry in model.metadata_props}
    mean, deviation = PIXELS if layout.integers else (None, None)
    mean = _color(stated.get("mean", mean), path, "mean")
    deviation = _color(stated.get("std", deviation), path, "std")
    return ExternalNetwork(layout.side_pixels or side_pixels, shape[1], mean, deviation, pools=len(shape) == 2)


def onnx_digest(path: str) -> str:
    """SHA-256 of an ONNX file; if some of its weights are in files beside it, of all these files together."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    weights = onnx.load(path, load_external_data=False).graph.initializer
    beside = {ExternalDataInfo(tensor).location for tensor in weights if uses_external_data(tensor)}
    digest = sha256()
    for file in (Path(path), *(Path(path).with_name(name) for name in sorted(beside))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class InputLayout:
    """How an ONNX network takes images."""

    side_pixels: int  # 0: any
    channels_last: bool
    integers: bool  # from 0 to 255


def input_layout(model: "onnx.ModelProto", path: str) -> InputLayout:
    """How the network takes images; a ValueError if it does not take any."""
    import onnx

    weights = {weight.name for weight in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    shape = _shape(inputs[0]) if len(inputs) == 1 else ()
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(
            f"{path} has {len(inputs)} input(s), the first of shape {shape}: expected one of shape (images, 3, height, "
            "width) or (images, height, width, 3)"
        )
    channels_last = shape[1] != 3
    height, width = shape[1:3] if channels_last else shape[2:]
    if height != width:
        raise ValueError(f"{path} takes images of {width} x {height}: expected squares")
    integers = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return InputLayout(height, channels_last, integers)


def _color(stated: str | Sequence[float] | None, network: str, name: str) -> tuple[float, float, float] | None:
    """Numbers for red, green and blue, from a list or its JSON; None if they are not stated."""
    if stated is None:
        return None
    try:
        red, green, blue = map(float, json.loads(stated) if isinstance(stated, str) else stated)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{network} says that its {name} is {stated!r}: expected three numbers in a list") from error
    return red, green, blue


def _shape(tensor: "onnx.ValueInfoProto") -> tuple[int, ...]:
    """The dimensions; 0 for those that are not fixed."""
    return tuple(dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim)


def missing_package(backbone: str, packages: list[str]) -> str:
    """The message for optional packages that are not installed."""
    return (
        f"the backbone {backbone} needs {' and '.join(packages)}, not installed here: install with "
        f"`uv pip install {' '.join(packages)}`"
    )
