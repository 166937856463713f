"""Tasks in threads: results in order, a moving count, and an end as soon as one fails or the run is interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path

import psutil
import pytest

from image_assets.images.isolated_process import GuardedProcess
from resources.delta.local_tasks import counted, run_in_threads

ROOT = Path(__file__).parents[3]


def test_results_come_in_the_order_of_the_parts_and_all_items_are_counted() -> None:
    reached: list[int] = []
    first_may_end = threading.Event()

    def doubled(parts: Iterable[list[int]]) -> Iterator[int]:
        for part in parts:
            if part[0] == 0:
                assert first_may_end.wait(20), "the parts run at the same time"
            yield from (2 * number for number in counted(part))
            first_may_end.set()

    assert run_in_threads(doubled, [[0, 1], [2, 3], [4]], 2, reached.append) == [0, 2, 4, 6, 8]
    assert reached[-1] == 5
    assert reached == sorted(reached)


def endless(parts: Iterable[Callable[[], int]]) -> Iterator[int]:
    for part in parts:
        yield from (one() for one in counted(repeat(part)))


def test_the_first_error_is_raised_and_stops_the_other_tasks() -> None:
    working = threading.Event()

    def fail() -> int:
        working.wait(20)
        raise ValueError("thorns")

    def work() -> int:
        working.set()
        return 1

    with pytest.raises(ValueError, match="thorns"):
        run_in_threads(endless, [work, fail, work], 2, lambda _: None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("task")]


def test_no_item_in_a_guarded_process_is_waited_for_once_another_task_has_failed() -> None:
    waiting = threading.Event()

    def fail() -> int:
        assert waiting.wait(20)
        raise ValueError("thorns")

    def hang() -> int:
        with GuardedProcess(time.sleep, memory_bytes=2**30) as guarded:
            waiting.set()
            guarded.run(100, cpu_seconds=1, wall_seconds=100)
        return 1

    started, before = time.monotonic(), psutil.Process().children()
    with pytest.raises(ValueError, match="thorns"):
        run_in_threads(endless, [hang, fail], 2, lambda _: None)
    assert time.monotonic() - started < 50
    assert psutil.Process().children() == before


def test_outside_of_local_tasks_items_pass_unchanged() -> None:
    assert list(counted("abc")) == ["a", "b", "c"]


INTERRUPTED = r"""
import os, signal, threading, time
from image_assets.images.isolated_process import GuardedProcess
from resources.delta.local_tasks import counted, run_in_threads

def decode(number):
    time.sleep(0.01)
    return os.getpid()

def decoded(parts):
    with GuardedProcess(decode, memory_bytes=1 << 30) as guarded:
        for part in parts:
            for number in counted(iter(int, 1)):
                os.write(1, b"%d\n" % guarded.run(number, cpu_seconds=60))
                yield number

signal.signal(signal.SIGTERM, signal.default_int_handler)
run_in_threads(decoded, [1, 2], 2, lambda done: None)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_of_tasks_that_are_interrupted_or_killed(sent: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as run:
        assert run.stdout
        children: set[int] = set()
        while len(children) < 2:
            children.add(int(run.stdout.readline()))
        decoders = [psutil.Process(child) for child in children]
        run.send_signal(sent)
        _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert b"KeyboardInterrupt" in errors or sent == signal.SIGKILL
    _, alive = psutil.wait_procs(decoders, timeout=20)
    assert not alive
