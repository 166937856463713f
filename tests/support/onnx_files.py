"""Small ONNX networks, made in code."""

import json
from pathlib import Path

import numpy as np


def write_onnx(file: Path, shape: list[int | str], output: list[int | str], **metadata: list[float]) -> str:
    """An ONNX file of a convolution with these dimensions of its input and output."""
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info, set_model_props
    from onnx.numpy_helper import from_array

    kernel = from_array(np.random.default_rng(0).normal(size=(8, 3, 1, 1)).astype(np.float32), "kernel")
    graph = make_graph(
        [make_node("Conv", ["image", "kernel"], ["features"], strides=[4, 4])],
        "network",
        [make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [make_tensor_value_info("features", onnx.TensorProto.FLOAT, output)],
        [kernel],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(model, file)
    return f"onnx:{file}"
