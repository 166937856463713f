"""Where a step's tasks run: in threads of this process, or in Spark.

The same plain functions do the work and write the same files either way. Spark takes about 20 seconds of CPU time to
start, so on one machine it pays only for a lot of work. A cluster always gets the work.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from pyspark.sql import SparkSession

from resources.delta.local_tasks import run_in_threads
from resources.delta.spark_session import DeltaSpark, counting_tasks, task_count, whole_rounds
from resources.delta.table import MEBIBYTE
from resources.progress import ProgressLine

LOCAL_BYTES = 2048 * MEBIBYTE  # of images; with more, tasks go to Spark
ROW_BYTES = 1024  # what a row without an image counts for
TASK_BYTES = MEBIBYTE  # less work gets no further thread

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Executor:
    """Runs tasks in threads, or in Spark if it has a session."""

    spark: SparkSession | None
    threads: int = 1

    def task_count(self, wanted: int) -> int:
        """About `wanted` tasks, the same number for each core that the work can use, and no more than are of use."""
        return task_count(self.spark, wanted) if self.spark else whole_rounds(wanted, self.threads)

    def run(
        self,
        task: Callable[[Iterable[Part]], Iterable[Result]],
        parts: Sequence[Part],
        progress: ProgressLine | None = None,
        *,
        rows: int = 0,
    ) -> list[Result]:
        """What the task yields for each of the parts.

        Args:
            task: Called with an iterator of parts; a plain function that can be pickled.
            parts: The parts.
            progress: The line that counts the rows; an open one, which may have counted earlier tasks.
            rows: How many rows, or files, all parts have.
        """
        if self.spark:
            counting = counting_tasks(self.spark, progress, rows=rows, tasks=len(parts)) if progress else nullcontext()
            with counting:
                return self.spark.sparkContext.parallelize(parts, len(parts)).mapPartitions(task).collect()
        before = progress.done if progress else 0

        def reach(done: int) -> None:
            if progress:
                progress.reach(before + min(done, rows))

        results = run_in_threads(task, parts, self.threads, reach)
        reach(rows)
        return results


def rows_run_locally(pyspark: DeltaSpark, rows: int) -> bool:
    """Whether work on so many rows without images runs in this process."""
    return runs_locally(pyspark, rows * ROW_BYTES)


def runs_locally(pyspark: DeltaSpark, size_bytes: int) -> bool:
    """Whether work of this size runs in this process."""
    if pyspark.executor == "auto":
        return pyspark.is_local and size_bytes <= LOCAL_BYTES
    return pyspark.executor == "local"


def executor_for(pyspark: DeltaSpark, size_bytes: int, task_bytes: int = TASK_BYTES) -> Executor:
    """The executor for work of this size; the session starts only if it is Spark.

    A local thread is added for each `task_bytes` of work, up to the number of cores.
    """
    if not runs_locally(pyspark, size_bytes):
        return Executor(pyspark.spark_session)
    return Executor(None, threads=max(1, min(pyspark.local_cores, size_bytes // task_bytes)))
