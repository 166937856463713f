"""How the ranks of a training talk: the same few words, whichever library carries them."""

import json
import os
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf
    from torch import Tensor

Value = TypeVar("Value")


class Collective(Protocol):
    """What ranks do together. Every rank calls the same methods in the same order."""

    rank: int
    size: int
    local_rank: int

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        ...

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks."""
        ...

    # Any: the tensors of the framework.
    def averaged(self, gradients: Sequence[Any]) -> list[Any]:
        """Each tensor's average over all ranks."""
        ...


def greatest(collective: Collective, number: int) -> int:
    """The greatest of the ranks' numbers."""
    numbers = np.zeros(collective.size)
    numbers[collective.rank] = number
    return int(collective.sum(numbers).max())


class HorovodForTorch:
    """Horovod between torch processes."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        hvd.init()
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import horovod.torch as hvd
        import torch

        return hvd.allreduce(torch.from_numpy(np.array(values, np.float64)), op=hvd.Sum, name="sum").numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks."""
        import horovod.torch as hvd

        return cast("Value", hvd.broadcast_object(value, root_rank=0, name="value"))

    def averaged(self, gradients: "Sequence[Tensor]") -> "list[Tensor]":
        """Each tensor's average over all ranks, all of them in one exchange."""
        import horovod.torch as hvd

        # Those of weights in channels-last order are not, and Horovod takes no others.
        contiguous = [gradient.contiguous() for gradient in gradients]
        return cast("list[Tensor]", hvd.grouped_allreduce(contiguous, op=hvd.Average, name="gradients"))


class HorovodForTensorflow:
    """Horovod between TensorFlow processes."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import horovod.tensorflow as hvd
        import tensorflow as tf

        return cast("tf.Tensor", hvd.allreduce(tf.constant(values, tf.float64), op=hvd.Sum)).numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks."""
        import horovod.tensorflow as hvd

        return cast("Value", hvd.broadcast_object(value, root_rank=0, name="value"))

    def averaged(self, gradients: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        """Each tensor's average over all ranks, all of them in one exchange; also inside of a graph."""
        import horovod.tensorflow as hvd

        return cast("list[tf.Tensor]", hvd.grouped_allreduce(list(gradients), op=hvd.Average))


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

        summed = torch.from_numpy(np.array(values, np.float64)).to(self._device)
        distributed.all_reduce(summed)
        return summed.cpu().numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks."""
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return cast("Value", values[0])

    def averaged(self, gradients: "Sequence[Tensor]") -> "list[Tensor]":
        """Each tensor's average over all ranks, all of them in one exchange."""
        import torch
        from torch import distributed

        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
        return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


class TensorflowDistributed:
    """The collectives of tf.distribute, between the processes of a MirroredStrategyRunner."""

    def __init__(self) -> None:
        import tensorflow as tf

        told = json.loads(os.environ["TF_CONFIG"])
        self.rank, self.size = int(told["task"]["index"]), len(told["cluster"]["worker"])
        self.local_rank = self.rank
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._sum = tf.function(self._summed)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import tensorflow as tf

        return self._sum([tf.constant(values, tf.float64)])[0].numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks: its bytes, added to the zeros of the others."""
        content = np.frombuffer(pickle.dumps(value), np.uint8) if self.rank == 0 else np.empty(0, np.uint8)
        sent = np.zeros(greatest(self, len(content)))
        sent[: len(content)] = content
        return pickle.loads(self.sum(sent).astype(np.uint8).tobytes())  # of this run's rank 0

    def averaged(self, gradients: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        """Each tensor's average over all ranks; also inside of a graph."""
        return [gradient / self.size for gradient in self._summed(gradients)]

    def _summed(self, tensors: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        import tensorflow as tf

        def reduced(*of: "tf.Tensor") -> "list[tf.Tensor]":
            # Arguments of a graph are on no device yet, and the strategy asks each tensor for its own.
            placed = [tf.identity(tensor) for tensor in of]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

        return list(self._strategy.run(reduced, args=tuple(tensors)))
