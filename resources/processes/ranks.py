"""The ranks of a training as the driver sees them: the environment they get, the lines and failures they tell of."""

import os
import re
import threading
from collections.abc import Callable
from typing import TextIO

from pyspark.sql import SparkSession

from resources.processes.rank_process import FailureReport, failure_in

GIBIBYTE = 1024**3
# How long the other ranks may go on once one has failed: usually they stop by themselves, at their next collective.
GRACE_SECONDS = 10
# What TensorFlow's C++ says before it has read its log level.
NOISE = re.compile(r"I\d{4} \d\d:|WARNING: All log messages before absl|To enable the following instructions")
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "HOROVOD_LOG_LEVEL": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    # Petastorm reads Parquet by calls that pyarrow deprecates: one warning for every file.
    "PYTHONWARNINGS": "ignore",
}


class RankFailure(RuntimeError):
    """A rank ended with an exception, or was killed; what it said of it is on top."""


def rank_environment(processes: int) -> dict[str, str]:
    """The environment of every rank: this process's, with its share of the cores and quiet libraries."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        **QUIET,
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # ranks may share a GPU
        # Without these, each batch's buffers go back to the kernel and are faulted in again: half the speed.
        "MALLOC_MMAP_THRESHOLD_": str(GIBIBYTE),
        "MALLOC_TRIM_THRESHOLD_": str(GIBIBYTE),
    }


def check_slots(spark: SparkSession, processes: int) -> None:
    """Refuse more processes than a local Spark can ever run at once; a cluster may still be growing."""
    context = spark.sparkContext
    if str(context.master).startswith("local") and context.defaultParallelism < processes:
        raise ValueError(
            f"Spark offers {context.defaultParallelism} slot(s), {processes} training processes need one each: "
            f"set IMAGE_ASSETS_SPARK_MASTER=local[{processes}], or lower IMAGE_ASSETS_PROCESSES"
        )


class Failures:
    """The failures that ranks told of. The first one stops the other ranks after a time of grace."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self._reported: list[FailureReport] = []
        self._timer = threading.Timer(GRACE_SECONDS, stop)
        self._timer.daemon = True
        self._lock = threading.Lock()

    def add(self, failure: FailureReport) -> None:
        """Take in a failure."""
        with self._lock:
            if not self._reported:
                self._timer.start()
            self._reported.append(failure)

    @property
    def any_reported(self) -> bool:
        """Whether a rank told of a failure."""
        return bool(self._reported)

    def to_error(self, processes: int) -> RankFailure:
        """The failure that the others followed from, as an exception of the driver."""
        reported = sorted(self._reported, key=lambda failure: failure.is_consequence)
        if not reported:
            return RankFailure(
                f"at least one of {processes} processes was ended from outside, without an error of its own: "
                "look for a lack of memory (IMAGE_ASSETS_PROCESSES lowers the need), or a cancelled run"
            )
        trace = f"\n\nOn the rank:\n{reported[0].trace}" if reported[0].trace else ""
        return RankFailure(f"{reported[0].type}: {reported[0].message}{trace}")

    def close(self) -> None:
        """Stop nothing any more."""
        self._timer.cancel()


class RankOutput:
    """A text stream that passes the ranks' lines on and keeps the failures among them."""

    def __init__(self, target: TextIO, failures: Failures) -> None:
        self._target = target
        self._failures = failures

    def write(self, line: str) -> None:
        """Take in one line."""
        failure = failure_in(line)
        if failure is not None:
            self._failures.add(failure)
            return
        text = line.rstrip("\n")
        if text and not NOISE.match(text):
            self._target.write(text + "\n")
            self._target.flush()
