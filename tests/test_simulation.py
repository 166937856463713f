"""Schedules of random faults, each compared with a plain model; `make soak` runs more of them, with another seed."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from resources.delta.spark_session import DeltaSpark
from tests.support.local_session import LocalSpark
from tests.support.simulation import Simulation

SOAK = int(os.environ.get("IMAGE_ASSETS_SOAK", "0"))  # schedules
PARTS = 4  # for the workers to share


def simulate(session: DeltaSpark, place: Path, *, schedules: int, steps: int, with_spark: bool) -> None:
    run_state_machine_as_test(
        lambda: Simulation(session, place, with_spark=with_spark),
        settings=settings(
            max_examples=schedules,
            stateful_step_count=steps,
            derandomize=not SOAK,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_tables_survive_faults(tmp_path: Path, part: int) -> None:
    schedules = (SOAK or 200) // PARTS
    simulate(LocalSpark(spark_config={}), tmp_path / f"{part}", schedules=schedules, steps=8, with_spark=False)


@pytest.mark.slow
@pytest.mark.spark
def test_tables_survive_faults_with_spark(delta_spark: DeltaSpark, tmp_path: Path) -> None:
    simulate(delta_spark, tmp_path / "place", schedules=SOAK // 10 or 20, steps=4, with_spark=True)
