"""TorchDistributor and spark-tensorflow-distributor: each starts a function in the tasks of a barrier job of Spark.

Both bring back what rank 0 returned only, and little of what went wrong. So the tasks run their ranks as processes of
their own, and tell the driver through connections what each rank says and returns.
"""

import logging
import pickle
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from typing import Any, Self

from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext, cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from resources.processes.rank_process import DriverAddress, FailureReport, run_tensorflow_rank, run_torch_rank
from resources.processes.ranks import Failures, RankOutput, check_slots, rank_environment

ENDING_SECONDS = 30  # how long the ranks of a cancelled job may take to end: Spark kills its tasks within four
TASK_ENDED = FailureReport(
    "RankKilled", "the Spark task of a rank was ended from outside: look for a lost executor", ""
)

Start = Callable[[Callable[[], None]], object]


# Any: the function is the caller's, and so is what it takes and returns.
def run_in_barrier_job(
    distributor: str,
    spark: SparkSession,
    processes: int,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """What the function returned on each rank, in order of rank; the distributor starts Spark's tasks."""
    check_slots(spark, processes)
    distributed, run_rank = DISTRIBUTORS[distributor]
    start, call = distributed(spark, processes), cloudpickle.dumps((function, args, kwargs))
    context, tag = spark.sparkContext, f"ranks-{secrets.token_hex(8)}"
    failures = Failures(partial(context.cancelJobsWithTag, tag))
    # Spark is asked by another thread: a cancelled run interrupts this one, and Py4J would mix up later answers.
    with RankConnections(context.getConf(), failures) as ranks, ThreadPoolExecutor(1) as thread:
        task = partial(run_rank, call, rank_environment(processes), ranks.address)
        job = thread.submit(run_tagged, context, tag, partial(start, task))
        try:
            job.result()
        except (Py4JJavaError, PySparkException) as error:
            if not failures.any_reported:
                raise
            raise failures.to_error(processes) from error
        finally:
            failures.close()
            context.cancelJobsWithTag(tag)
    if failures.any_reported or len(ranks.returned) < processes:
        raise failures.to_error(processes)
    return [pickle.loads(ranks.returned[rank]) for rank in range(processes)]


def run_tagged(context: SparkContext, tag: str, start: Callable[[], object]) -> None:
    """Start what Spark can cancel by the tag."""
    context.addJobTag(tag)
    start()


def by_torch(spark: SparkSession, processes: int) -> Start:
    """What runs a task on each rank of torch.distributed; on GPUs where Spark has them."""
    from pyspark.ml.torch.distributor import TorchDistributor

    logging.getLogger("TorchDistributor").disabled = True  # it says when it starts and ends
    return TorchDistributor(processes, local_mode=False, use_gpu=has_gpus(spark)).run


def by_tensorflow(spark: SparkSession, processes: int) -> Start:
    """What runs a task on each worker of TensorFlow's cluster; on GPUs where Spark has them."""
    from spark_tensorflow_distributor import MirroredStrategyRunner

    logging.getLogger("MirroredStrategyRunner").disabled = True  # it says when it starts and ends
    return MirroredStrategyRunner(num_slots=processes, use_gpu=has_gpus(spark), use_custom_strategy=True).run


DISTRIBUTORS = {
    "torch_distributor": (by_torch, run_torch_rank),
    "tensorflow_distributor": (by_tensorflow, run_tensorflow_rank),
}


def has_gpus(spark: SparkSession) -> bool:
    """Whether Spark gives each task a GPU."""
    return float(spark.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0") or 0) >= 1


class RankConnections:
    """The driver's end of the connections to the ranks' tasks."""

    def __init__(self, conf: SparkConf, failures: Failures) -> None:
        host, key = str(conf.get("spark.driver.host")), secrets.token_bytes(32)
        bound = str(conf.get("spark.driver.bindAddress", host))
        self._listener = Listener((bound, 0), authkey=key, backlog=128)
        self._bound = (bound, int(self._listener.address[1]))
        self.address = DriverAddress(host, self._bound[1], key)
        self.returned: dict[int, bytes] = {}
        self._failures = failures
        self._outputs = {name: RankOutput(getattr(sys, name), failures) for name in ("stdout", "stderr")}
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until every rank's task is done or ended."""
        self._closed = True
        socket.create_connection(self._bound).close()  # wakes the thread that accepts
        for thread in self._threads:
            thread.join(ENDING_SECONDS)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, OSError):
                continue  # not a rank
            self._threads.append(threading.Thread(target=self._read, args=[connection], daemon=True))
            self._threads[-1].start()

    def _read(self, connection: Connection) -> None:
        with connection:
            while True:
                try:
                    kind, payload = connection.recv()
                except (EOFError, OSError):
                    self._failures.add(TASK_ENDED)
                    return
                if kind in self._outputs:
                    self._outputs[kind].write(payload)
                    continue
                if kind == "returned":
                    rank, pickled = payload
                    self.returned[rank] = pickled
                return
