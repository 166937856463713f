"""TorchDistributor and spark-tensorflow-distributor, which run a function in the tasks of a Spark barrier job.

Both return only the result of rank 0, and little about errors. So each task runs its rank as a separate process and
sends the rank's output and result to the driver over a connection.
"""

import logging
import pickle
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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

ENDING_SECONDS = 30  # how long to wait for the ranks of a canceled job; Spark kills tasks within four seconds
TASK_ENDED = FailureReport(
    "RankKilled", "The Spark task of a rank ended unexpectedly. Check Spark's log for a lost executor.", ""
)

Start = Callable[[Callable[[], None]], object]


# Any: the function is the caller's, and so are its arguments and results.
def run_in_barrier_job(
    distributor: str,
    spark: SparkSession,
    processes: int,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """Calls the function on each rank and returns the results in order of rank."""
    check_slots(spark, processes)
    distributed, run_rank = DISTRIBUTORS[distributor]
    start, call = distributed(spark, processes), cloudpickle.dumps((function, args, kwargs))
    context, tag = spark.sparkContext, f"ranks-{secrets.token_hex(8)}"
    failures = Failures(partial(context.cancelJobsWithTag, tag))
    # The Spark job runs in another thread: cancelling a run would interrupt a Py4J call and mix up later replies.
    with RankConnections(context.getConf(), failures, processes) as ranks, ThreadPoolExecutor(1) as thread:
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
    """Starts a job that Spark can cancel by the tag."""
    context.addJobTag(tag)
    start()


def by_torch(spark: SparkSession, processes: int) -> Start:
    """A function that runs a task on each rank of torch.distributed, on GPUs if Spark assigns them."""
    from pyspark.ml.torch.distributor import TorchDistributor

    logging.getLogger("TorchDistributor").disabled = True  # it only logs its start and end
    return TorchDistributor(processes, local_mode=False, use_gpu=has_gpus(spark)).run


def by_tensorflow(spark: SparkSession, processes: int) -> Start:
    """A function that runs a task on each worker of TensorFlow's cluster, on GPUs if Spark assigns them."""
    from spark_tensorflow_distributor import MirroredStrategyRunner

    logging.getLogger("MirroredStrategyRunner").disabled = True  # it only logs its start and end
    return MirroredStrategyRunner(num_slots=processes, use_gpu=has_gpus(spark), use_custom_strategy=True).run


DISTRIBUTORS = {
    "torch_distributor": (by_torch, run_torch_rank),
    "tensorflow_distributor": (by_tensorflow, run_tensorflow_rank),
}


def has_gpus(spark: SparkSession) -> bool:
    """Whether Spark assigns a GPU to each task."""
    return float(spark.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0") or 0) >= 1


class RankConnections:
    """The driver's end of the connections to the ranks' tasks."""

    def __init__(self, conf: SparkConf, failures: Failures, processes: int) -> None:
        host, key = str(conf.get("spark.driver.host")), secrets.token_bytes(32)
        bound = str(conf.get("spark.driver.bindAddress", host))
        self._listener = Listener((bound, 0), authkey=key, backlog=128)
        self._bound = (bound, int(self._listener.address[1]))
        self.address = DriverAddress(host, self._bound[1], key)
        self.returned: dict[int, bytes] = {}
        self._processes, self._all_returned = processes, threading.Event()
        self._failures = failures
        self._outputs = {name: RankOutput(getattr(sys, name), failures) for name in ("stdout", "stderr")}
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until every rank's task has ended."""
        self._closed = True
        self._all_returned.set()  # also if some never will
        socket.create_connection(self._bound).close()  # wakes the accepting thread
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
        has_returned = False
        with connection:
            while True:
                try:
                    kind, payload = connection.recv()
                except (EOFError, OSError):
                    if not has_returned:
                        self._failures.add(TASK_ENDED)
                    return
                if kind in self._outputs:
                    self._outputs[kind].write(payload)
                elif kind == "returned":
                    rank, pickled = payload
                    self.returned[rank], has_returned = pickled, True
                    answering = threading.Thread(target=self._answer, args=[connection], daemon=True)
                    answering.start()
                else:  # it has ended
                    if not has_returned:
                        self._all_returned.set()  # they never will
                    return

    def _answer(self, connection: Connection) -> None:
        """Tells a rank's task that all ranks have returned."""
        if len(self.returned) == self._processes:
            self._all_returned.set()
        self._all_returned.wait()
        with suppress(OSError):  # its job was canceled
            connection.send("all returned")
