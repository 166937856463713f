"""A device that torch takes for an accelerator, while its tensors' numbers are in host memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch  # noqa: TID253 - only a process that uses torch imports this file
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: TID253
from torch.utils._pytree import tree_map  # noqa: TID253
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: TID253

NAME = "stand_in"
DEVICE = f"{NAME}:0"


class OnStandIn(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnStandIn":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


class StandInDevice(TorchDispatchMode):
    """Within the block, `tensor.to(DEVICE)` and every operation on the result work. At most once in a process."""

    def __enter__(self) -> "StandInDevice":
        _setup_privateuseone_for_python_backend(NAME)
        getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
        return super().__enter__()

    def __torch_dispatch__(self, operation: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


def run(operation: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The operation's result, computed in host memory, on the device that it belongs on."""
    on_device = []

    def held(value: Any) -> Any:
        on_device.extend([value] * isinstance(value, OnStandIn))
        return value.held if isinstance(value, OnStandIn) else value

    def placed(value: Any) -> Any:
        return OnStandIn(value) if isinstance(value, torch.Tensor) else value

    host_args, host_kwargs = tree_map(held, args), tree_map(held, dict(kwargs))
    target = host_kwargs.get("device")
    stays = bool(on_device) if target is None else torch.device(target).type == NAME
    if target is not None:
        host_kwargs["device"] = "cpu"
    result = operation(*host_args, **host_kwargs)
    if args and isinstance(args[0], torch.Tensor) and result is host_args[0]:  # it changed its first argument
        return args[0]
    return tree_map(placed, result) if stays else result
