"""A driver on a cluster: `python -m tests.support.ranks_on_cluster <master> <folder> <distributor>…`.

For each distributor it prints the sums of two ranks, and on how many workers they ran.
"""

import sys
from pathlib import Path

import numpy as np

from resources.delta.spark_session import spark_session
from resources.training import TrainingProcesses
from tests.support.rank_functions import summed

ARRAYS = (np.arange(3.0), np.ones((1, 2)))


def summed_where(distributor: str) -> tuple[int, list[list[int]], Path]:
    """Return this rank, the sums over all ranks, and the working directory of its Spark executor."""
    rank, sums = summed(distributor, ARRAYS)
    return rank, [total.astype(int).tolist() for total in sums], Path.cwd()


def main(master: str, folder: str, *distributors: str) -> None:
    session = spark_session(master, scratch=folder)
    processes = TrainingProcesses(processes=2)
    for name in distributors:
        (first, sums, here), (second, others, there) = processes.run(session, name, summed_where, distributor=name)
        assert sums == others
        result = f"ranks {first} and {second} on {len({here, there})} workers, {sums[0]} and {sums[1]}"
        sys.stdout.write(f"{name}: {result}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
