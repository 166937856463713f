"""Tasks in threads of this process, for work that is done before Spark would have started.

Threads are enough: images are decoded in guarded processes, and reading, hashing, resizing and writing Parquet release
the interpreter's lock.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")
Part = TypeVar("Part")
Result = TypeVar("Result")

POLL_SECONDS = 0.5  # between two updates of the progress line
_thread = threading.local()


class TaskStopped(Exception):
    """A task ends before its last item, because another one failed or the run was interrupted."""


@dataclass
class Running:
    """Tasks that run together: how many items they have taken, and whether they go on."""

    counts: dict[int, int] = field(default_factory=dict)  # by thread
    stopped: threading.Event = field(default_factory=threading.Event)


def require_running() -> None:
    """Raises TaskStopped in a local task that is to end."""
    running: Running | None = getattr(_thread, "running", None)
    if running and running.stopped.is_set():
        raise TaskStopped


def counted(items: Iterable[Item]) -> Iterator[Item]:
    """A task's items. In a local task, they move the progress line, and end when the tasks are stopped."""
    running: Running | None = getattr(_thread, "running", None)
    me = threading.get_ident()
    for item in items:
        require_running()
        if running:
            running.counts[me] = running.counts.get(me, 0) + 1
        yield item


def run_in_threads(
    task: Callable[[Iterable[Part]], Iterable[Result]],
    parts: Sequence[Part],
    threads: int,
    reach: Callable[[int], object],
) -> list[Result]:
    """What the task yields for each of the parts, in their order; the first error stops the other tasks.

    Args:
        task: Called with one part at a time, as Spark's `mapPartitions` would. Its items go through `counted`.
        parts: The parts.
        threads: How many tasks run at once.
        reach: Called now and then with the number of items that were taken.
    """
    running = Running()

    def run(part: Part) -> list[Result]:
        _thread.running = running
        return list(task(iter([part])))

    with ThreadPoolExecutor(threads, "task") as pool:
        futures = [pool.submit(run, part) for part in parts]
        try:
            unfinished = set(futures)
            while unfinished:
                done, unfinished = wait(unfinished, POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                reach(sum(running.counts.values()))
        except BaseException:  # an interrupt, too
            running.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the block waits for items in progress
            raise
        return [result for future in futures for result in future.result()]
