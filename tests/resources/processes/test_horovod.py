"""Tests of the changes to Horovod, and of runs on real Horovod processes."""

import importlib
import importlib.util
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from resources.processes.horovod import ADAPTATIONS, RuntimeReplacement, SourceEdit, run_with_horovod
from resources.processes.ranks import RankFailure

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PYTHON_EDITS = [change for change in ADAPTATIONS if isinstance(change, SourceEdit) and change.file.endswith(".py")]
REPLACEMENTS = [change for change in ADAPTATIONS if isinstance(change, RuntimeReplacement)]


@pytest.mark.parametrize("change", REPLACEMENTS, ids=lambda change: f"{change.module}.{change.attribute}")
def test_each_runtime_replacement_names_an_attribute_that_exists(change: RuntimeReplacement) -> None:
    assert hasattr(importlib.import_module(change.module), change.attribute)


@pytest.mark.parametrize("edit", PYTHON_EDITS, ids=lambda edit: edit.file)
def test_the_installed_horovod_contains_each_edit_once(edit: SourceEdit) -> None:
    spec = importlib.util.find_spec("horovod")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent.parent / edit.file
    assert installed.read_text().count(edit.replacement.removesuffix(r"\g<0>")) == 1


def test_the_changes_fit_the_installed_version() -> None:
    assert version("horovod") == "0.28.1"


def test_every_change_has_a_reason_and_a_condition_for_dropping_it() -> None:
    assert all(change.reason.endswith(".") and change.drop_when.endswith(".") for change in ADAPTATIONS)


@pytest.mark.spark
def test_more_processes_than_slots_are_rejected_before_anything_starts(spark: SparkSession) -> None:
    with pytest.raises(ValueError, match=r"1000 training processes.*IMAGE_ASSETS_SPARK_MASTER=local\[1000\]"):
        run_with_horovod(spark, 1000, time.sleep, [0], {})


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

    results = run_with_horovod(spark, processes, rank_and_sum, ["hello"], {"number": 3})

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
            raise ValueError("the second rank failed")
        while True:
            hvd.allreduce(torch.ones(1))

    started = time.monotonic()
    with pytest.raises(RankFailure, match=r"\AValueError: the second rank failed\n"):
        run_with_horovod(spark, 2, fail_on_rank_one, [], {})
    assert time.monotonic() - started < 60


@pytest.mark.training
def test_a_run_restores_what_it_replaced(spark: SparkSession) -> None:
    modules = {change: importlib.import_module(change.module) for change in REPLACEMENTS}
    before = {change: getattr(module, change.attribute) for change, module in modules.items()}

    run_with_horovod(spark, 1, int, ["3"], {})

    assert {change: getattr(module, change.attribute) for change, module in modules.items()} == before
