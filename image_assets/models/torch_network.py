"""Networks trained in PyTorch: loaded on a GPU, and cut before the head.

This file stands alone: it is also stored beside every model version trained in PyTorch and loaded from there.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

PACKAGE = "torch"

# Pixels (n, side, side, 3) uint8 to probabilities (n, labels) or embeddings (n, features), float32.
Network = Callable[[np.ndarray], np.ndarray]
# Pixels to both of them, as `probabilities` and `embedding`.
WholeNetwork = Callable[[np.ndarray], dict[str, np.ndarray]]


def count_gpus() -> int:
    """How many GPUs PyTorch finds."""
    require_triton()
    import torch

    return torch.cuda.device_count()


def load_network(folder: str, device: str) -> tuple[WholeNetwork, type[Exception]]:
    """The network of an MLflow model, in half precision, and the error it raises when the device's memory runs out."""
    require_triton()
    import torch
    from mlflow import pytorch

    # Pixels arrive channels-last; laying the weights out the same way saves a copy per layer. Torch's annotations lack
    # the argument.
    network = pytorch.load_model(folder)
    # An exported graph returns one tensor: the embeddings become more columns of it.
    head, output = _head(network), _output(network)
    labels = network.get_parameter(head.args[1].target).shape[0]
    with network.graph.inserting_before(output):
        columns = network.graph.call_function(torch.ops.aten.cat.default, ([*output.args[0], head.args[0]], 1))
    output.args = ((columns,),)
    network.recompile()
    network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def outputs(pixels: np.ndarray) -> dict[str, np.ndarray]:
        # Autocast keeps the operations that need float32, such as softmax, in float32.
        with torch.inference_mode(), torch.autocast(device, torch.float16):
            found = network(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return {"probabilities": found[:, :labels], "embedding": found[:, labels:]}

    return outputs, torch.OutOfMemoryError


def load_embedder(folder: str) -> Network:
    """The network of an MLflow model up to its embedding, on the CPU."""
    import torch
    from mlflow import pytorch

    network = pytorch.load_model(folder)
    _output(network).args = ((_head(network).args[0],),)
    network.graph.eliminate_dead_code()
    network.recompile()

    def embed(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return embed


# Any: torch's types of graphs are not complete.
def _head(network: Any) -> Any:
    """The head's node. An exported graph has no layers: the head is its last linear operation."""
    import torch

    return [node for node in network.graph.nodes if node.target == torch.ops.aten.linear.default][-1]


def _output(network: Any) -> Any:
    (output,) = network.graph.find_nodes(op="output")
    return output


def require_triton() -> None:
    """Raise an ImportError if importing torch now would crash the process."""
    # Triton, torch's compiler, bundles an LLVM that collides with TensorFlow's when TensorFlow was loaded first.
    loaded = "tensorflow" in sys.modules and "triton._C.libtriton" not in sys.modules
    if loaded and importlib.util.find_spec("triton"):
        raise ImportError(
            "TensorFlow is already loaded in this process, and loading Triton, which PyTorch needs, after it would "
            "crash the process: load this version first, or in another process"
        )
