"""Run a training function on N Horovod processes, inside Spark's executors."""

import io
import shutil
import sys
import threading
from codecs import StreamReader
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dagster as dg
from pydantic import Field
from pyspark.sql import SparkSession

from resources.processes.horovod_task import replaced, run_task
from resources.processes.rank_process import call_on_rank
from resources.processes.ranks import Failures, RankOutput, check_slots, rank_environment

START_TIMEOUT_SECONDS = 180


class HorovodRunner(dg.ConfigurableResource):
    """Horovod's processes, each in a slot of Spark."""

    processes: int = Field(default=2, gt=0, description="Horovod processes (ranks) that a training runs on.")

    # Any: the function is the caller's, and so is what it takes and returns.
    def run(self, spark: SparkSession, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """What the function returned on each rank, in order of rank.

        Function and arguments are pickled; the ranks get this process's environment and import the function by name.
        """
        import horovod.spark

        check_slots(spark, self.processes)
        stop = threading.Event()
        failures = Failures(stop.set)
        with horovod_adapted(stop):
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
                stop.set()


@contextmanager
def horovod_adapted(stop: threading.Event) -> Iterator[None]:
    """Horovod's launcher, with parts replaced for the time of a run.

    It would take over SIGINT and SIGTERM for good, so that a run could not be cancelled; `stop` takes their place.
    It would show the ranks' output in blocks of 64 KiB, long after it was written. It would print two pages about
    the Spark job that it cancels when a rank has failed. And it would import TensorFlow in a fork of this process,
    for many seconds, to see whether Gloo was built: a rank says so anyway. Its Spark tasks are adapted in `run_task`.
    """
    from horovod.runner import gloo_run, launch
    from horovod.runner.common.util import network
    from horovod.spark import runner

    original = threading.excepthook

    def excepthook(raised: threading.ExceptHookArgs) -> None:
        if "cancelled job group" not in str(raised.exc_value):
            original(raised)

    live = SimpleNamespace(**{**vars(shutil), "copyfileobj": copy_lines})
    with (
        replaced(gloo_run, "register_shutdown_event", lambda: stop),
        replaced(network, "shutil", live),
        replaced(launch, "gloo_built", lambda verbose: True),
        replaced(runner, "_task_fn", run_task),
        replaced(threading, "excepthook", excepthook),
    ):
        yield


def copy_lines(source: StreamReader, target: RankOutput) -> None:
    """Hand on each line as soon as it is there."""
    for line in io.TextIOWrapper(source.stream, encoding="utf-8", errors="replace"):  # pyright: ignore[reportArgumentType]
        target.write(line)
