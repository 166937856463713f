"""Tests of the environment that ranks get."""

from resources.processes.ranks import rank_environment


def test_ranks_share_the_cores() -> None:
    one, many = rank_environment(1), rank_environment(1000)

    assert int(one["OMP_NUM_THREADS"]) >= 1
    assert many["OMP_NUM_THREADS"] == "1"
