"""The driver's side of a training: the ranks' environment, their output, and their failures."""

import os
import re
import threading
from collections.abc import Callable
from typing import TextIO

from pyspark.sql import SparkSession

from resources.processes.rank_process import FailureReport, failure_in

GIBIBYTE = 1024**3
# How long the other ranks may run after one failed. They usually stop on their own, at their next collective.
GRACE_SECONDS = 10
# TensorFlow's C++ code logs these lines before it reads its log level.
NOISE = re.compile(r"I\d{4} \d\d:|WARNING: All log messages before absl|To enable the following instructions")
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "HOROVOD_LOG_LEVEL": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    # Petastorm calls deprecated pyarrow functions: one warning per file.
    "PYTHONWARNINGS": "ignore",
}


class RankFailure(RuntimeError):
    """A rank failed or was killed; the message starts with its own error."""


def rank_environment(processes: int) -> dict[str, str]:
    """The environment of every rank: the driver's, with its share of the cores and less logging."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        **QUIET,
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # ranks may share a GPU
        # Otherwise glibc returns each batch's buffers to the kernel and requests them again: half the training speed.
        "MALLOC_MMAP_THRESHOLD_": str(GIBIBYTE),
        "MALLOC_TRIM_THRESHOLD_": str(GIBIBYTE),
    }


def check_slots(spark: SparkSession, processes: int) -> None:
    """A ValueError if a local Spark has too few task slots. Clusters are not checked: they may still be growing."""
    context = spark.sparkContext
    if str(context.master).startswith("local") and context.defaultParallelism < processes:
        raise ValueError(
            f"Spark has {context.defaultParallelism} task slots, but {processes} training processes need one each: "
            f"set IMAGE_ASSETS_SPARK_MASTER=local[{processes}] or lower IMAGE_ASSETS_PROCESSES"
        )


class Failures:
    """The failures that ranks reported. The first one stops the other ranks after `GRACE_SECONDS`."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self._reported: list[FailureReport] = []
        self._timer = threading.Timer(GRACE_SECONDS, stop)
        self._timer.daemon = True
        self._lock = threading.Lock()

    def add(self, failure: FailureReport) -> None:
        """Records a failure."""
        with self._lock:
            if not self._reported:
                self._timer.start()
            self._reported.append(failure)

    @property
    def any_reported(self) -> bool:
        """Whether a rank reported a failure."""
        return bool(self._reported)

    def to_error(self, processes: int) -> RankFailure:
        """The failure that caused the others, as an exception to raise in the driver."""
        reported = sorted(self._reported, key=lambda failure: failure.is_consequence)
        if not reported:
            return RankFailure(
                f"At least one of {processes} training processes ended without reporting an error. "
                "The machine may be out of memory (lower IMAGE_ASSETS_PROCESSES), or the run was canceled."
            )
        trace = f"\n\nOn the rank:\n{reported[0].trace}" if reported[0].trace else ""
        return RankFailure(f"{reported[0].type}: {reported[0].message}{trace}")

    def close(self) -> None:
        """Cancels the delayed stop."""
        self._timer.cancel()


class RankOutput:
    """A text stream that forwards the ranks' lines and records the failures in them."""

    def __init__(self, target: TextIO, failures: Failures) -> None:
        self._target = target
        self._failures = failures

    def write(self, line: str) -> None:
        """Handles one line."""
        failure = failure_in(line)
        if failure is not None:
            self._failures.add(failure)
            return
        text = line.rstrip("\n")
        if text and not NOISE.match(text):
            self._target.write(text + "\n")
            self._target.flush()
