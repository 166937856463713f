"""Tests of ranks that are forks of one process: what they share, what they print, and what they leave behind."""

import os

import psutil
import pytest

from resources.processes.local_ranks import local_ranks
from resources.processes.ranks import RankFailure
from tests.support import rank_functions

MODULE = rank_functions.__name__


def test_modules_are_imported_once_for_all_ranks() -> None:
    with local_ranks(2, [MODULE]) as run:
        (importer, first, rank), (again, second, other) = run(rank_functions.importer_and_rank)
    assert importer == again
    assert len({os.getpid(), importer, first, second}) == 4
    assert (rank, other) == (0, 1)


def test_long_lines_of_all_ranks_arrive_whole(capfd: pytest.CaptureFixture[str]) -> None:
    with local_ranks(2, []) as run:
        run(rank_functions.print_lines, lines=50, length=200_000)
    lines = capfd.readouterr().out.split()
    assert sorted(lines) == sorted(["0" * 200_000, "1" * 200_000] * 50)


def test_a_module_that_is_missing_is_named() -> None:
    with (
        pytest.raises(RankFailure, match=r"\AModuleNotFoundError: No module named 'missing_module'"),
        local_ranks(2, ["missing_module"]) as run,
    ):
        run(rank_functions.importer_and_rank)


def test_ranks_that_get_no_call_end_with_the_block() -> None:
    before = set(psutil.Process().children())
    with local_ranks(2, [MODULE]):
        started = set(psutil.Process().children()) - before
    assert started
    assert not any(process.is_running() for process in started)
