"""A version's network for other devices: an upright image of any size in, probabilities out, in one small file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # Any: JSON

from image_assets.models.engines import SIDE_PIXELS
from image_assets.models.onnx_model import INPUT, OPSET

if TYPE_CHECKING:
    import onnx

IMAGE = "image"
MOST_BYTES = 15_000_000
# In front of the network, what `pixels.py` does to a decoded image, with Pillow's own numbers: gray as weighted sums
# of integers, and a bilinear resize with antialiasing whose weights count no pixel outside of the image.
RESIZED = f"""
    batch = Unsqueeze (to_resize, first)
    square = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (batch, , , sizes)
    {INPUT} = Expand (square, shape)
"""
CONSTANTS = """
    int64[1] first = {0}, int64[4] sizes = {1, SIDE, SIDE, CHANNELS}, int64[4] shape = {1, SIDE, SIDE, 3}
"""
TO_GRAY = """
    values = Cast <to = 6> (image)
    weighted = Mul (values, weights)
    sums = ReduceSum <keepdims = 1> (weighted, last)
    rounded = Add (sums, half)
    levels = Div (rounded, whole)
    to_resize = Cast <to = 2> (levels)
"""
GRAY_CONSTANTS = """,
    int64[1] last = {2}, int32[3] weights = {19595, 38470, 7471}, int32 half = {32768}, int32 whole = {65536}
"""
IN_COLOR = "to_resize = Identity (image)"


def write_edge_model(network: Path, classifier: Mapping[str, Any], file: Path) -> None:
    """Write a network, as `write_onnx` left it, with what comes before it and what its version says of itself.

    It takes `image`, uint8 (height, width, 3), and gives `probabilities`, float32 (1, labels). Its metadata hold the
    `labels` (JSON) in the order of the probabilities, the `color` that it sees, and the `framework` of its training.
    """
    import onnx

    model = onnx.load(network)
    color = classifier.get("color", "rgb")
    front = onnx.compose.add_prefix(  # a network may have names like its own
        _front(color, model.ir_version), "front/", rename_inputs=False, rename_outputs=False
    )
    whole = onnx.compose.merge_models(front, model, io_map=[(INPUT, INPUT)])
    told = {"labels": json.dumps(classifier["labels"], ensure_ascii=False), "framework": classifier["framework"]}
    onnx.helper.set_model_props(whole, {**told, "color": color})
    onnx.checker.check_model(whole, full_check=True)
    content = whole.SerializeToString()
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"the model has {len(content):,} bytes, expected at most {MOST_BYTES:,}: a device takes no larger one; "
            "train a smaller network"
        )
    file.write_bytes(content)


def _front(color: str, ir_version: int) -> "onnx.ModelProto":
    import onnx

    channels, before, more = {"rgb": (3, IN_COLOR, ""), "gray": (1, TO_GRAY, GRAY_CONSTANTS)}[color]
    constants = CONSTANTS.replace("SIDE", str(SIDE_PIXELS)).replace("CHANNELS", str(channels)) + more
    return onnx.parser.parse_model(
        f"""<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
        front (uint8[height, width, 3] {IMAGE}) => (uint8[1, {SIDE_PIXELS}, {SIDE_PIXELS}, 3] {INPUT}) <{constants}>
        {{ {before} {RESIZED} }}"""
    )
