"""How the ranks of a PyTorch training exchange values: Horovod, or torch.distributed."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from image_assets.models.epochs import Value

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.001  # between two looks whether all ranks have called


class HorovodForTorch:
    """Horovod between torch processes."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        hvd.init()
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        # Built without CUDA, Horovod accepts a GPU's tensors all the same: it does not wait for its copy of them, and
        # aborts the process when it writes the averages back.
        self._takes_gpu_tensors = bool(hvd.nccl_built())

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import horovod.torch as hvd
        import torch

        handle = hvd.allreduce_async(torch.from_numpy(np.array(values, np.float64)), op=hvd.Sum, name="sum")
        # Horovod would keep a core busy until it is done, and a rank may wait long for the one that logs the model.
        while not hvd.poll(handle):
            time.sleep(POLL_SECONDS)
        return cast("torch.Tensor", hvd.synchronize(handle)).numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every rank; the others' values are ignored."""
        import horovod.torch as hvd

        return cast("Value", hvd.broadcast_object(value, root_rank=0, name="value"))

    def averaged(self, gradients: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Each tensor's average over all ranks, exchanged together."""
        import horovod.torch as hvd

        sent = gradients if self._takes_gpu_tensors else [gradient.cpu() for gradient in gradients]
        # Gradients of weights in channels-last order are not contiguous, and Horovod requires it.
        contiguous = [gradient.contiguous() for gradient in sent]
        averages = hvd.grouped_allreduce(contiguous, op=hvd.Average, name="gradients")
        return [average.to(gradient.device) for average, gradient in zip(averages, gradients, strict=True)]


class TorchDistributed:
    """torch.distributed, between the processes of a TorchDistributor."""

    def __init__(self) -> None:
        from torch import cuda, distributed

        distributed.init_process_group("nccl" if cuda.is_available() else "gloo")
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self._device = f"cuda:{self.local_rank}" if cuda.is_available() else "cpu"

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import torch
        from torch import distributed

        # A copy on the GPU if there is one: NCCL cannot reduce tensors in host memory.
        summed = torch.from_numpy(np.array(values, np.float64)).to(self._device)
        distributed.all_reduce(summed)
        return summed.cpu().numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every rank; the others' values are ignored."""
        import torch
        from torch import distributed

        values = [value]
        # NCCL would use the first GPU on every rank.
        distributed.broadcast_object_list(values, src=0, device=torch.device(self._device))
        return cast("Value", values[0])

    def averaged(self, gradients: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Each tensor's average over all ranks, exchanged together."""
        import torch
        from torch import distributed

        # One flat tensor: a call for each of a hundred small tensors would mostly wait for the network.
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
        return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


COLLECTIVES = {"horovod": HorovodForTorch, "torch_distributor": TorchDistributed}
