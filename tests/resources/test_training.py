"""Tests of the three ways to run a function on several processes, with real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psutil
import pytest
from pyspark.sql import SparkSession

from resources.delta.spark_session import DeltaSpark
from resources.processes.local_ranks import local_ranks
from resources.processes.rank_process import Distributor
from resources.processes.ranks import RankFailure
from resources.training import TrainingProcesses
from scripts.cluster import CLUSTER_ENVIRONMENT, standalone_cluster
from tests.support.rank_functions import (
    CONNECTED,
    die_while_the_other_waits,
    end_without_a_word,
    fail_while_the_other_sleeps,
    is_there_until_the_other_returns,
    sleep,
)

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TWO = TrainingProcesses(processes=2)
MARK = "IMAGE_ASSETS_TEST_MARK"

each_distributor = pytest.mark.parametrize("distributor", [*CONNECTED, "this machine"])


def library(distributor: str) -> str:
    return "horovod" if distributor == "this machine" else distributor


def run(spark: DeltaSpark, distributor: str, *call: Any) -> list[Any]:
    """A call on two ranks, in Spark or (by Horovod) without it."""
    if distributor != "this machine":
        return TWO.run(spark, cast("Distributor", distributor), *call)
    with local_ranks(2, imports=["numpy"]) as run_on_this_machine:
        return run_on_this_machine(*call)


@pytest.fixture
def mark(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the environment of this test's ranks holds, but not that of Spark, which has started before."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    return mark


def seconds_since(file: Path) -> float:
    """How long ago a rank wrote the file."""
    return time.time() - file.stat().st_mtime


def processes_left(mark: str) -> list[list[str]]:
    """The command lines of ranks, and of what started them, that still run some seconds after a training."""
    deadline = time.monotonic() + 10
    while (left := ranks(mark) + launchers()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def ranks(mark: str) -> list[list[str]]:
    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                left.append(process.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return left


def launchers() -> list[list[str]]:
    left = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(word.startswith(("torch.distributed", "pyspark.ml.torch")) for word in command):
            left.append(command)
    return left


@pytest.mark.parametrize("distributor", ["horovod", "torch_distributor", "this machine"])
def test_when_one_rank_fails_its_message_is_on_top_and_a_sleeping_one_is_stopped(
    delta_spark: DeltaSpark, distributor: str, mark: str, tmp_path: Path
) -> None:
    with pytest.raises(RankFailure, match=r"\AValueError: the second rank failed\n"):
        run(delta_spark, distributor, fail_while_the_other_sleeps, tmp_path / "gone")
    assert seconds_since(tmp_path / "gone") < 60
    assert processes_left(mark) == []


@each_distributor
def test_a_killed_rank_ends_the_others_and_the_error_says_by_which_signal(
    delta_spark: DeltaSpark, distributor: str, mark: str, tmp_path: Path
) -> None:
    with pytest.raises(RankFailure, match=r"\ARankKilled: A rank was killed from outside \(signal 9, SIGKILL\)"):
        run(delta_spark, distributor, die_while_the_other_waits, library(distributor), tmp_path / "gone")
    assert seconds_since(tmp_path / "gone") < 60
    assert processes_left(mark) == []


@pytest.fixture
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as it raises an error of Dagster's in a run that is terminated."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("interrupted_by_sigterm")
@each_distributor
def test_a_canceled_run_leaves_no_process(delta_spark: DeltaSpark, distributor: str, mark: str, tmp_path: Path) -> None:
    def terminate_once_both_sleep() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate_once_both_sleep, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(delta_spark, distributor, sleep, tmp_path)
    assert processes_left(mark) == []
    assert delta_spark.spark_session.range(3).count() == 3


@pytest.mark.parametrize("distributor", ["torch_distributor", "tensorflow_distributor"])
def test_a_rank_ends_only_when_all_have_returned(delta_spark: DeltaSpark, distributor: str, tmp_path: Path) -> None:
    assert run(delta_spark, distributor, is_there_until_the_other_returns, tmp_path) == [True, True]


def test_a_rank_that_ends_without_a_word_keeps_no_other_one_waiting(delta_spark: DeltaSpark) -> None:
    with pytest.raises(RankFailure):
        run(delta_spark, "tensorflow_distributor", end_without_a_word)


@pytest.mark.slow
def test_on_a_cluster_of_two_workers_each_runs_a_rank(tmp_path: Path) -> None:
    with standalone_cluster(workers=2) as master:
        command = [sys.executable, "-m", "tests.support.ranks_on_cluster", master, str(tmp_path), *CONNECTED]
        environment = {**os.environ, **CLUSTER_ENVIRONMENT}
        driver = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert driver.returncode == 0, driver.stderr[-3000:]
    lines = driver.stdout.splitlines()
    assert [line for line in lines if "workers" in line] == [
        f"{distributor}: ranks 0 and 1 on 2 workers, [0, 3, 6] and [[3, 3]]" for distributor in CONNECTED
    ]
    assert [lines.count(f"hello from rank {rank}") for rank in (0, 1)] == [3, 3]
