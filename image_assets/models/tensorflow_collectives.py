"""How the ranks of a TensorFlow training exchange values: Horovod, or tf.distribute."""

import json
import os
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from image_assets.models.epochs import Value, greatest

if TYPE_CHECKING:
    import tensorflow as tf


class HorovodForTensorflow:
    """Horovod between TensorFlow processes."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        _use_one_gpu(self.local_rank)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import horovod.tensorflow as hvd
        import tensorflow as tf

        return cast("tf.Tensor", hvd.allreduce(tf.constant(values, tf.float64), op=hvd.Sum)).numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every rank; the others' values are ignored."""
        import horovod.tensorflow as hvd

        return cast("Value", hvd.broadcast_object(value, root_rank=0, name="value"))

    def averaged(self, gradients: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        """Each tensor's average over all ranks, exchanged together; also works inside a graph."""
        import horovod.tensorflow as hvd

        # Without CUDA, Horovod registers its operations for the CPU only, so TensorFlow copies a GPU's tensors itself.
        return cast("list[tf.Tensor]", hvd.grouped_allreduce(list(gradients), op=hvd.Average))


def _use_one_gpu(local_rank: int) -> None:
    """Limit this process to its own GPU, if there is any, and to the memory it needs, as ranks may share one."""
    import tensorflow as tf

    if gpus := tf.config.list_physical_devices("GPU"):
        gpu = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(gpu, "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)


class TensorflowDistributed:
    """The collectives of tf.distribute, between the processes of a MirroredStrategyRunner."""

    def __init__(self) -> None:
        import tensorflow as tf

        cluster = json.loads(os.environ["TF_CONFIG"])
        self.rank, self.size = int(cluster["task"]["index"]), len(cluster["cluster"]["worker"])
        self.local_rank = self.rank
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._sum = tf.function(self._summed)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, float64."""
        import tensorflow as tf

        return self._sum([tf.constant(values, tf.float64)])[0].numpy()

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every rank; the others' values are ignored."""
        # This strategy has no broadcast of objects: rank 0 adds its bytes to the zeros of the others.
        content = np.frombuffer(pickle.dumps(value), np.uint8) if self.rank == 0 else np.empty(0, np.uint8)
        sent = np.zeros(greatest(self, len(content)))
        sent[: len(content)] = content
        return pickle.loads(self.sum(sent).astype(np.uint8).tobytes())  # written by rank 0 of this run

    def averaged(self, gradients: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        """Each tensor's average over all ranks; also inside of a graph."""
        return [gradient / self.size for gradient in self._summed(gradients)]

    def _summed(self, tensors: "Sequence[tf.Tensor]") -> "list[tf.Tensor]":
        import tensorflow as tf

        def reduced(*of: "tf.Tensor") -> "list[tf.Tensor]":
            # A graph's arguments have no device yet, which the strategy needs to know.
            placed = [tf.identity(tensor) for tensor in of]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

        return list(self._strategy.run(reduced, args=tuple(tensors)))


COLLECTIVES = {"horovod": HorovodForTensorflow, "tensorflow_distributor": TensorflowDistributed}
