"""Schedules of random faults, each compared with a plain model; `make soak` runs more of them, from another seed."""

import os
from pathlib import Path

import pytest

from resources.delta.spark_session import DeltaSpark
from tests.support.simulation import Simulation

SCHEDULES, FIRST_SEED = int(os.environ.get("SCHEDULES") or 80), int(os.environ.get("SEED") or 0)
PER_TEST = 10
SPARK_STARTS_AT = 1_000_000


def seeds(schedules: int, first: int = FIRST_SEED) -> list[range]:
    """The seeds of the schedules, in parts that workers share."""
    return [
        range(start, min(start + PER_TEST, first + schedules)) for start in range(first, first + schedules, PER_TEST)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", seeds(SCHEDULES), ids=str)
def test_tables_survive_faults(tmp_path: Path, part: range) -> None:
    for seed in part:
        Simulation(DeltaSpark(spark_config={}), tmp_path / f"seed {seed}", seed, with_spark=False).live(steps=7)


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.parametrize("part", seeds(SCHEDULES // 10, FIRST_SEED + SPARK_STARTS_AT), ids=str)
def test_tables_survive_faults_with_spark(delta_spark: DeltaSpark, tmp_path: Path, part: range) -> None:
    session = DeltaSpark(spark_config=delta_spark.spark_config, executor="spark")
    for seed in part:
        simulation = Simulation(session, tmp_path / f"seed {seed}", seed, with_spark=True)
        simulation.live(steps=4, audited=seed == part[-1])
