"""Functions that ranks run in tests, and how each distributor sums arrays over its ranks."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ENDLESS_SECONDS = 600
IMPORTER = os.getpid()

Arrays = Sequence[np.ndarray]  # of one type: TensorFlow packs them into one tensor
Sum = Callable[[Arrays], list[np.ndarray]]


def by_horovod() -> tuple[int, Sum]:
    """Return this rank and Horovod's sum over all ranks."""
    import horovod.torch as hvd
    import torch

    def sums(arrays: Arrays) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in hvd.grouped_allreduce(list(map(torch.from_numpy, arrays)), op=hvd.Sum)]

    hvd.init()
    return hvd.rank(), sums


def by_torch() -> tuple[int, Sum]:
    """Return this rank and torch.distributed's sum over all ranks."""
    import torch
    from torch import distributed

    def sums(arrays: Arrays) -> list[np.ndarray]:
        tensors = [torch.from_numpy(array.copy()) for array in arrays]
        for tensor in tensors:
            distributed.all_reduce(tensor)
        return [tensor.numpy() for tensor in tensors]

    distributed.init_process_group("gloo")
    return distributed.get_rank(), sums


def by_tensorflow() -> tuple[int, Sum]:
    """Return this rank and the sum of MultiWorkerMirroredStrategy, which must be the first use of TensorFlow."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def in_replica(*tensors: tf.Tensor) -> list[tf.Tensor]:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))

    def sums(arrays: Arrays) -> list[np.ndarray]:
        tensors = tuple(map(tf.constant, arrays))
        return [tensor.numpy() for tensor in tf.function(lambda: strategy.run(in_replica, args=tensors))()]

    return strategy.cluster_resolver.task_id, sums


CONNECTED = {"horovod": by_horovod, "torch_distributor": by_torch, "tensorflow_distributor": by_tensorflow}


def summed(distributor: str, arrays: Arrays) -> tuple[int, list[np.ndarray]]:
    """Return this rank and each array summed over all ranks, where rank r contributes r + 1 times the array."""
    rank, sums = CONNECTED[distributor]()
    logging.getLogger("image_assets.test").info("hello from rank %s", rank)
    return rank, sums([array * (rank + 1) for array in arrays])


def die_while_the_other_waits(distributor: str, gone: Path) -> None:
    """The second rank is killed; the first waits for it in a collective."""
    rank, sums = CONNECTED[distributor]()
    if rank == 1:
        time.sleep(1)
        gone.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    sums([np.ones(1)])


def rank_from_environment() -> int:
    """This rank, from the variables that the distributor sets, without loading a framework."""
    rank = os.environ.get("HOROVOD_RANK") or os.environ.get("RANK")
    return int(rank or json.loads(os.environ["TF_CONFIG"])["task"]["index"])


def is_there_until_the_other_returns(folder: Path) -> bool:
    """Rank 0 returns late, and tells whether the process of rank 1, which returns at once, is still there."""
    rank = rank_from_environment()
    (folder / f"process {rank}").write_text(str(os.getpid()))
    if rank == 0:
        time.sleep(3)
        return Path("/proc", (folder / "process 1").read_text()).exists()
    return True


def end_without_a_word() -> None:
    """Rank 1 ends without a result or an error."""
    if rank_from_environment() == 1:
        os._exit(3)


def fail_while_the_other_sleeps(gone: Path) -> None:
    """The second rank fails; the first never meets it again."""
    if rank_from_environment() == 1:
        gone.touch()
        raise ValueError("the second rank failed")
    time.sleep(ENDLESS_SECONDS)


def sleep(folder: Path) -> None:
    """Writes a file named after this rank, and sleeps."""
    (folder / f"rank {rank_from_environment()}").touch()
    time.sleep(ENDLESS_SECONDS)


def importer_and_rank() -> tuple[int, int, int]:
    """The processes that imported this module and that run this function, and the rank."""
    return IMPORTER, os.getpid(), rank_from_environment()


def lock() -> object:
    """A result that cannot be pickled."""
    return threading.Lock()


def leave_a_process() -> int:
    """Starts a process that keeps this rank's output open, and returns its id."""
    return subprocess.Popen(["sleep", str(ENDLESS_SECONDS)]).pid


def exit_at_once() -> None:
    """Ends the process as a crash in a library would, without a word."""
    os._exit(3)


def print_lines(lines: int, length: int) -> None:
    """Prints lines that consist of the rank's digit."""
    for _ in range(lines):
        sys.stdout.write(str(rank_from_environment()) * length + "\n")
