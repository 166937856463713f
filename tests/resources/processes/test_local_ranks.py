"""Tests of ranks that are forks of one process: what they share, what they print, and what they leave behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from resources.processes.local_ranks import local_ranks
from resources.processes.ranks import RankFailure
from tests.support import rank_functions
from tests.support.waiting import wait_until

MODULE = rank_functions.__name__
PATIENCE_SECONDS = 60
DRIVER = """
import sys
from pathlib import Path
from resources.processes.local_ranks import local_ranks
from tests.support.rank_functions import sleep
with local_ranks(2, []) as run:
    run(sleep, Path(sys.argv[1]))
"""


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
    with pytest.raises(RankFailure, match=r"\AModuleNotFoundError: No module named 'missing_module'"):
        call(["missing_module"], rank_functions.importer_and_rank)


def test_a_module_that_starts_threads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import threading; threading.Thread(target=threading.Event().wait, name='waits', daemon=True).start()"
    (tmp_path / "with_threads.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RankFailure, match=r"\ARuntimeError: importing with_threads started threads: waits"):
        call(["with_threads"], rank_functions.importer_and_rank)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (rank_functions.lock, r"\ATypeError: cannot pickle '_thread\.lock' object"),
        (rank_functions.exit_at_once, r"\AAt least one of 2 training processes ended without reporting an error"),
    ],
)
def test_a_rank_without_a_result_is_a_failure(function: Callable[[], object], message: str) -> None:
    with pytest.raises(RankFailure, match=message):
        call([], function)


def test_a_process_that_a_rank_leaves_ends_after_it() -> None:
    left = call([], rank_functions.leave_a_process)
    assert len(left) == 2
    wait_until(lambda: not any(map(is_running, left)), PATIENCE_SECONDS)


def test_ranks_that_get_no_call_end_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    before, began = children(), time.monotonic()
    with local_ranks(2, ["slow_to_import"]):
        started = children() - before
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert started
    assert not any(process.is_running() for process in started)


def test_if_the_process_that_they_were_forked_from_is_killed_ranks_end_and_the_error_names_the_signal(
    tmp_path: Path,
) -> None:
    before = children()

    def kill_once_both_sleep() -> None:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, PATIENCE_SECONDS)
        (forked_from,) = children() - before
        ranks.extend(forked_from.children())
        forked_from.send_signal(signal.SIGKILL)

    ranks: list[psutil.Process] = []
    threading.Thread(target=kill_once_both_sleep, daemon=True).start()
    with pytest.raises(RankFailure, match=r"\ARankKilled: A rank was killed from outside \(signal 9, SIGKILL\)"):
        call([], rank_functions.sleep, tmp_path)
    assert len(ranks) == 2
    wait_until(lambda: not any(process.is_running() for process in ranks), PATIENCE_SECONDS)


def test_ranks_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)]) as driver:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, PATIENCE_SECONDS)
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert len(started) == 3
    wait_until(lambda: not any(process.is_running() for process in started), PATIENCE_SECONDS)


def call(imports: list[str], function: Callable[..., object], *arguments: object) -> list[Any]:
    with local_ranks(2, imports) as run:
        return run(function, *arguments)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def is_running(process_id: int) -> bool:
    return psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
