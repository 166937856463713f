"""What an item does to the guarded process costs that item only."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from image_assets.images.isolated_process import GuardedProcess, ItemFailure

MEMORY_BYTES = 64 * 1024**2


def does(word: str) -> object:
    """What the word says."""
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "exit":
        os._exit(3)
    elif word == "sleep":
        time.sleep(60)
    elif word == "nap":
        time.sleep(1.5)
    elif word == "compute":
        while True:
            pass
    elif word == "hog":
        return len(bytes(4 * MEMORY_BYTES))
    elif word == "raise":
        raise ValueError("a mistake")
    return word, os.getpid()


def busy(seconds: float) -> int:
    """Compute for so long."""
    started = time.process_time()
    while time.process_time() < started + seconds:
        pass
    return os.getpid()


@pytest.fixture
def guarded() -> Iterator[GuardedProcess[str, object]]:
    with GuardedProcess(does, memory_bytes=MEMORY_BYTES) as process:
        yield process


@pytest.mark.parametrize(
    ("word", "reason", "says"),
    [
        ("crash", "decoder_crash", "SIGSEGV"),
        ("exit", "decoder_crash", "exit code 3"),
        ("sleep", "timeout", "more than 3 s:"),
        ("compute", "timeout", "more than 1 s of CPU time"),
        ("hog", "out_of_memory", f"{MEMORY_BYTES:,} bytes"),
    ],
)
def test_a_hostile_item_has_a_reason_and_the_next_one_its_answer(
    guarded: GuardedProcess[str, object], word: str, reason: str, says: str
) -> None:
    for _ in range(2):
        failure = guarded.run(word, cpu_seconds=1, wall_seconds=3 if word == "sleep" else 60)
        assert isinstance(failure, ItemFailure)
        assert failure.reason == reason
        assert says in failure.message
        answer = guarded.run("harmless", cpu_seconds=10)
        assert isinstance(answer, tuple)
        assert answer[0] == "harmless"
        assert answer[1] != os.getpid()


def test_waiting_is_not_the_fault_of_an_item(guarded: GuardedProcess[str, object]) -> None:
    assert isinstance(guarded.run("nap", cpu_seconds=0.5), tuple)
    failure = guarded.run("sleep", cpu_seconds=0.1)
    assert isinstance(failure, ItemFailure), "but it must not wait forever"
    assert failure.reason == "timeout"


def test_each_item_has_cpu_time_of_its_own() -> None:
    with GuardedProcess(busy, memory_bytes=MEMORY_BYTES) as guarded:
        processes = {guarded.run(0.2, cpu_seconds=0.5) for _ in range(4)}
    assert len(processes) == 1
    assert isinstance(processes.pop(), int)


def test_one_process_serves_all_items_and_ends_with_the_block() -> None:
    with GuardedProcess(does, memory_bytes=MEMORY_BYTES) as guarded:
        answers = [guarded.run(str(number), cpu_seconds=10) for number in range(100)]
    words, processes = zip(*answers, strict=True)  # pyright: ignore[reportArgumentType]
    assert list(words) == [str(number) for number in range(100)]
    (process,) = set(processes)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def wait_for_the_end(child: int) -> None:
    """Waits until the kernel has ended a child of this process, which nobody has asked about yet."""
    deadline = time.monotonic() + 60
    while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("outlives_thread", [False, True])
def test_a_child_ends_with_the_thread_that_started_it_unless_it_shall_not(outlives_thread: bool) -> None:
    with GuardedProcess(does, memory_bytes=MEMORY_BYTES, outlives_thread=outlives_thread) as guarded:
        with ThreadPoolExecutor(1) as thread:
            (_, first), (_, second) = (thread.submit(guarded.run, "x", cpu_seconds=10).result() for _ in range(2))
        if not outlives_thread:
            wait_for_the_end(first)
        _, later = guarded.run("x", cpu_seconds=10)
    assert first == second
    assert (later == first) is outlives_thread
    with pytest.raises(ProcessLookupError):
        os.kill(later, 0)


def test_an_item_far_larger_than_the_memory_bound_gets_through(guarded: GuardedProcess[str, object]) -> None:
    large = "x" * 2 * MEMORY_BYTES
    answer = guarded.run(large, cpu_seconds=60)
    assert isinstance(answer, tuple)
    assert answer[0] == large


def test_an_exception_rises_in_the_caller_with_its_own_traceback(guarded: GuardedProcess[str, object]) -> None:
    with pytest.raises(ValueError, match="a mistake") as raised:
        guarded.run("raise", cpu_seconds=10)
    assert "in does" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("outlives_thread", [False, True])
def test_the_child_ends_with_a_caller_that_is_killed(outlives_thread: bool) -> None:
    program = f"""
import os, time
from image_assets.images.isolated_process import GuardedProcess
work = lambda seconds: time.sleep(seconds) or os.getpid()
guarded = GuardedProcess(work, memory_bytes=1 << 26, outlives_thread={outlives_thread})
print(guarded.run(0, cpu_seconds=10), flush=True)
guarded.run(600, cpu_seconds=600)
"""
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    child = int(caller.stdout.readline())
    caller.kill()
    caller.wait()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} outlives its caller")
