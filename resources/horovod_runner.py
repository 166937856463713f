"""Run a training function on N Horovod processes, inside Spark's executors."""

import io
import os
import re
import shutil
import sys
import threading
from codecs import StreamReader
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import dagster as dg
from pydantic import Field
from pyspark.sql import SparkSession

from resources.horovod_rank import Failure, call_on_rank, failure_in

GIBIBYTE = 1024**3
# How long the other ranks may go on once one has failed: usually they stop by themselves, at their next collective.
GRACE_SECONDS = 10
START_TIMEOUT_SECONDS = 180
RANK_PREFIX = re.compile(r"^\[\d+\]<std(?:out|err)>:")  # what Horovod puts before each line
# What TensorFlow's C++ says before it has read its log level.
NOISE = re.compile(r"I\d{4} \d\d:|WARNING: All log messages before absl|To enable the following instructions")
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "HOROVOD_LOG_LEVEL": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    # Petastorm reads Parquet by calls that pyarrow deprecates: one warning for every file.
    "PYTHONWARNINGS": "ignore",
}


class HorovodFailure(RuntimeError):
    """A rank ended with an exception, whose message is on top."""


class HorovodRunner(dg.ConfigurableResource):
    """Horovod's processes, each in a slot of Spark."""

    processes: int = Field(default=2, gt=0, description="Horovod processes (ranks) that a training runs on.")

    # Any: the function is the caller's, and so is what it takes and returns.
    def run(self, spark: SparkSession, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """What the function returned on each rank, in order of rank.

        Function and arguments are pickled; the ranks get this process's environment and import the function by name.
        """
        import horovod.spark

        self._check_slots(spark)
        stop = threading.Event()
        failures = Failures(stop)
        with horovod_adapted(stop, failures):
            try:
                return horovod.spark.run(
                    call_on_rank,
                    args=(function, args, kwargs),
                    num_proc=self.processes,
                    start_timeout=START_TIMEOUT_SECONDS,
                    use_gloo=True,
                    env=rank_environment(self.processes),
                    stdout=RankOutput(sys.stdout, failures),
                    stderr=RankOutput(sys.stderr, failures),
                    verbose=0,
                )
            except RuntimeError as error:
                raise failures.to_error(self.processes) from error
            finally:
                failures.close()

    def _check_slots(self, spark: SparkSession) -> None:
        slots = spark.sparkContext.defaultParallelism
        if slots < self.processes:
            raise ValueError(
                f"Spark offers {slots} slot(s), {self.processes} Horovod processes need one each: "
                f"set IMAGE_ASSETS_SPARK_MASTER=local[{self.processes}], or lower IMAGE_ASSETS_PROCESSES"
            )


def rank_environment(processes: int) -> dict[str, str]:
    """The environment of every rank: this process's, with its share of the cores and quiet libraries."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        **QUIET,
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # ranks may share a GPU
        # Without these, each batch's buffers go back to the kernel and are faulted in again: half the speed.
        "MALLOC_MMAP_THRESHOLD_": str(GIBIBYTE),
        "MALLOC_TRIM_THRESHOLD_": str(GIBIBYTE),
    }


class Failures:
    """The failures that ranks told of. The first one stops the other ranks after a time of grace."""

    def __init__(self, stop: threading.Event) -> None:
        self._told: list[Failure] = []
        self._stop = stop
        self._timer = threading.Timer(GRACE_SECONDS, stop.set)
        self._timer.daemon = True
        self._lock = threading.Lock()

    def add(self, failure: Failure) -> None:
        """Take in a failure."""
        with self._lock:
            if not self._told:
                self._timer.start()
            self._told.append(failure)

    @property
    def any_told(self) -> bool:
        """Whether a rank told of a failure."""
        return bool(self._told)

    def to_error(self, processes: int) -> HorovodFailure:
        """The failure that the others followed from, as an exception of the driver."""
        told = sorted(self._told, key=lambda failure: failure.is_consequence)
        if not told:
            return HorovodFailure(
                f"at least one of {processes} Horovod processes was ended from outside, without an error of its own: "
                "look for a lack of memory (IMAGE_ASSETS_PROCESSES lowers the need), or a cancelled run"
            )
        return HorovodFailure(f"{told[0].type}: {told[0].message}\n\nOn the rank:\n{told[0].trace}")

    def close(self) -> None:
        """Stop what still runs."""
        self._timer.cancel()
        self._stop.set()


class RankOutput:
    """A text stream that passes the ranks' lines on, without Horovod's prefix, and keeps the failures among them."""

    def __init__(self, target: TextIO, failures: Failures) -> None:
        self._target = target
        self._failures = failures

    def write(self, line: str) -> None:
        """Take in one line."""
        failure = failure_in(line)
        if failure is not None:
            self._failures.add(failure)
            return
        text = RANK_PREFIX.sub("", line).rstrip("\n")
        if text and not NOISE.match(text):
            self._target.write(text + "\n")
            self._target.flush()


@contextmanager
def horovod_adapted(stop: threading.Event, failures: Failures) -> Iterator[None]:
    """Horovod's launcher, with parts replaced for the time of a run.

    It would take over SIGINT and SIGTERM for good, so that a run could not be cancelled; `stop` takes their place.
    It would show the ranks' output in blocks of 64 KiB, long after it was written. It would print two pages about
    the Spark job that it cancels when a rank has failed. And it would import TensorFlow in a fork of this process,
    for many seconds, to see whether Gloo was built: a rank says so anyway.
    """
    from horovod.runner import gloo_run, launch
    from horovod.runner.common.util import network

    original = threading.excepthook

    def excepthook(raised: threading.ExceptHookArgs) -> None:
        if not failures.any_told:
            original(raised)

    live = SimpleNamespace(**{**vars(shutil), "copyfileobj": copy_lines})
    with (
        replaced(gloo_run, "register_shutdown_event", lambda: stop),
        replaced(network, "shutil", live),
        replaced(launch, "gloo_built", lambda verbose: True),
        replaced(threading, "excepthook", excepthook),
    ):
        yield


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """The module with another value under the name."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def copy_lines(source: StreamReader, target: RankOutput) -> None:
    """Hand on each line as soon as it is there."""
    for line in io.TextIOWrapper(source.stream, encoding="utf-8", errors="replace"):  # pyright: ignore[reportArgumentType]
        target.write(line)
