"""Tests of the Horovod runner, with real processes."""

import time
from typing import Any

import pytest
from pyspark.sql import SparkSession

from resources.processes.horovod import HorovodRunner
from resources.processes.rank_process import FailureReport, failure_in
from resources.processes.ranks import RankFailure, rank_environment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_failure_survives_its_way_through_a_line_of_output() -> None:
    failure = FailureReport("ValueError", "two\nlines", "Traceback …")

    assert failure_in(f"[1]<stderr>:{failure.to_line()}\n") == failure
    assert failure_in("[1]<stderr>:ValueError: two") is None


def test_ranks_share_the_cores() -> None:
    one, many = rank_environment(1), rank_environment(1000)

    assert int(one["OMP_NUM_THREADS"]) >= 1
    assert many["OMP_NUM_THREADS"] == "1"


@pytest.mark.spark
def test_more_processes_than_slots_are_refused_before_anything_starts(spark: SparkSession) -> None:
    with pytest.raises(ValueError, match=r"1000 training processes.*IMAGE_ASSETS_SPARK_MASTER=local\[1000\]"):
        HorovodRunner(processes=1000).run(spark, time.sleep, 0)


@pytest.mark.training
@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_of_rank_and_lines_reach_the_terminal(
    spark: SparkSession, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def rank_and_sum(word: str, *, number: int) -> tuple[int, float]:
        import logging

        import horovod.torch as hvd
        import torch

        hvd.init()
        logging.getLogger("image_assets.test").info("%s from rank %s", word, hvd.rank())
        return hvd.rank(), hvd.allreduce(torch.tensor(float(number)), op=hvd.Sum).item()

    results = HorovodRunner(processes=processes).run(spark, rank_and_sum, "hello", number=3)

    assert results == [(rank, 3.0 * processes) for rank in range(processes)]
    assert sorted(capsys.readouterr().out.split("\n")) == [
        "",
        *(f"hello from rank {rank}" for rank in range(processes)),
    ]


@pytest.mark.training
def test_an_exception_on_one_rank_surfaces_with_its_message_on_top(spark: SparkSession) -> None:
    def fail_on_rank_one() -> Any:
        import horovod.torch as hvd
        import torch

        hvd.init()
        if hvd.rank() == 1:
            raise ValueError("the second rank has had enough")
        while True:
            hvd.allreduce(torch.ones(1))

    started = time.monotonic()
    with pytest.raises(RankFailure, match=r"\AValueError: the second rank has had enough\n"):
        HorovodRunner(processes=2).run(spark, fail_on_rank_one)
    assert time.monotonic() - started < 60
