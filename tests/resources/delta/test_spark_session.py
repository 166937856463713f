"""Spark's finished tasks move a progress line."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from resources.delta.spark_session import SHORT_WORK, TASKS_PER_CORE, counting_tasks, spark_session, task_count
from resources.progress import ProgressLine

pytestmark = pytest.mark.spark
ROOT = Path(__file__).parents[3]


def progress_line() -> ProgressLine:
    return ProgressLine("doubled", 80, "numbers", lambda line: None)


def slowly_doubled(spark: SparkSession, tasks: int) -> list[int]:
    def double(number: int) -> int:
        time.sleep(0.4)
        return 2 * number

    return spark.sparkContext.parallelize(range(tasks), tasks).map(double).collect()


def slowly_doubled_in_a_dataframe(spark: SparkSession, tasks: int) -> list[int]:
    def double(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(0.4)
        for batch in batches:
            yield pa.RecordBatch.from_pylist([{"id": 2 * row["id"]} for row in batch.to_pylist()])

    in_tasks: Any = double  # pyarrow has no types
    return sorted(spark.range(tasks).repartition(tasks).mapInArrow(in_tasks, "id long").toPandas()["id"])


@pytest.mark.parametrize("double", [slowly_doubled, slowly_doubled_in_a_dataframe])
def test_the_line_moves_while_tasks_finish_and_is_exact_in_the_end(
    spark: SparkSession, double: Callable[[SparkSession, int], list[int]]
) -> None:
    tasks = TASKS_PER_CORE * spark.sparkContext.defaultParallelism
    seen: set[int] = set()
    over = threading.Event()
    with progress_line() as progress:

        def watch() -> None:
            while not over.wait(0.05):
                seen.add(progress.done)

        watching = threading.Thread(target=watch)
        watching.start()
        with counting_tasks(spark, progress, rows=40, tasks=tasks):
            doubled = double(spark, tasks)
        over.set()
        watching.join()
        assert doubled == [2 * number for number in range(tasks)]
        assert any(0 < done < 40 for done in seen)
        assert progress.done == 40
        with counting_tasks(spark, progress, rows=30, tasks=1):
            slowly_doubled(spark, 1)
        assert progress.done == 70, "a second block counts on"


@pytest.mark.parametrize(("master", "is_short"), [("local[*]", True), ("local", True), ("spark://host:7077", False)])
def test_only_local_sessions_are_set_up_for_short_work(master: str, is_short: bool) -> None:
    options = str(spark_session(master, scratch="nowhere").spark_config["spark.driver.extraJavaOptions"])
    assert options.endswith(SHORT_WORK) == is_short


def test_stages_with_another_number_of_tasks_and_failed_blocks_count_nothing(spark: SparkSession) -> None:
    def fail_after_four_tasks(progress: ProgressLine) -> None:
        with counting_tasks(spark, progress, rows=40, tasks=5):
            slowly_doubled(spark, 4)
            raise ValueError("stop")

    with progress_line() as progress:
        with pytest.raises(ValueError, match="stop"):
            fail_after_four_tasks(progress)
        assert progress.done == 0


def test_jobs_after_the_block_belong_to_no_group(spark: SparkSession) -> None:
    with progress_line() as progress, counting_tasks(spark, progress, rows=1, tasks=1):
        assert spark.sparkContext.getLocalProperty("spark.jobGroup.id")
    assert spark.sparkContext.getLocalProperty("spark.jobGroup.id") is None


@pytest.mark.parametrize(("wanted", "per_core"), [(0, 1), (10**6, TASKS_PER_CORE)])
def test_there_are_from_one_to_a_few_tasks_for_each_core(spark: SparkSession, wanted: int, per_core: int) -> None:
    assert task_count(spark, wanted) == per_core * spark.sparkContext.defaultParallelism


DYING_JAVA = """
import sys, psutil
from scripts.terminal import explanation
from tests.support.small_spark import small_spark
first = small_spark(sys.argv[1], "local[1]").spark_session
print(first.range(3).count())
java = [child for child in psutil.Process().children(recursive=True) if child.name() == "java"]
for process in java:
    process.kill()
psutil.wait_procs(java)
try:
    first.range(3).count()
except Exception as error:
    print(explanation(error).splitlines()[-1])
print(small_spark(sys.argv[1], "local[1]").spark_session.range(4).count())
"""


@pytest.mark.slow
def test_a_java_process_that_died_is_explained_and_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DYING_JAVA, str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, message, second = answer.stdout.splitlines()
    assert (first, second) == ("3", "4")
    assert message.startswith("What to do: Spark's Java process died")
