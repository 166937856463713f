"""Little work runs in this process; a lot of it, and all work on a cluster, runs in Spark."""

import pytest

from resources.delta.executors import LOCAL_BYTES, TASK_BYTES, executor_for, runs_locally
from resources.delta.spark_session import DeltaSpark, ExecutorName, spark_session

LITTLE, MUCH = 1, LOCAL_BYTES + 1


@pytest.mark.parametrize(
    ("master", "choice", "size_bytes", "is_local"),
    [
        ("local[*]", "auto", LITTLE, True),
        ("local[2]", "auto", LOCAL_BYTES, True),
        ("local[2]", "auto", MUCH, False),
        ("local", "local", MUCH, True),
        ("local[*]", "spark", LITTLE, False),
        ("spark://host:7077", "auto", LITTLE, False),
        ("local-cluster[1,2,1024]", "auto", LITTLE, False),
        ("yarn", "local", LITTLE, True),
    ],
)
def test_the_amount_of_work_the_master_and_the_setting_decide(
    master: str, choice: ExecutorName, size_bytes: int, is_local: bool
) -> None:
    session = spark_session(master, scratch="nowhere", executor=choice)
    assert runs_locally(session, size_bytes) == is_local


@pytest.mark.parametrize(
    ("master", "size_bytes", "threads"),
    [("local[3]", 0, 1), ("local[3]", 2 * TASK_BYTES, 2), ("local[3]", LOCAL_BYTES, 3), ("local", LOCAL_BYTES, 1)],
)
def test_there_are_as_many_threads_as_the_work_and_the_master_allow(master: str, size_bytes: int, threads: int) -> None:
    session = DeltaSpark(spark_config={"spark.master": master})
    executor = executor_for(session, size_bytes)
    assert executor.spark is None
    assert [executor.task_count(wanted) for wanted in (0, 5, 60)] == [threads, 5 - 5 % threads, 60], (
        "none is idle at the end"
    )
