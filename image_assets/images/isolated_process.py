"""A child process with time and memory limits, for work that hostile files may crash.

Items go through a pipe one by one, so that it is known which of them crashed or hung. A general process pool works on
chunks of items, and cannot tell.
"""

import faulthandler
import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, Self, TypeVar

from resources.processes.child_process import end_with_parent

FORK = get_context("fork")  # starts in milliseconds, with the decoders loaded already

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ItemFailure:
    """Why there is no result for an item: a reason of one word, and a message."""

    reason: str
    message: str


class GuardedProcess(Generic[Item, Result]):
    """Runs a function on one item after the other in a child process, which is replaced after a crash.

    Exceptions of the function are raised in the caller, except MemoryError. The child ends with the `with` block, and
    with the process that started it, however that ends.
    """

    def __init__(self, function: Callable[[Item], Result], *, memory_bytes: int, name: str = "decoder") -> None:
        self._function = function
        self._memory_bytes = memory_bytes
        self._name = name  # used in messages
        self._child = self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, item: Item, *, seconds: float) -> Result | ItemFailure:
        """The function's result, or why there is none."""
        pipe = self._started()
        try:
            pipe.send(item)
            if not pipe.poll(seconds):
                self._stop()
                message = f"the {self._name} took more than {seconds:,.0f} s: make the image smaller, or re-save it"
                return ItemFailure("timeout", message)
            result = pipe.recv()
        except (EOFError, ConnectionError):
            return self._crashed()
        if isinstance(result, BaseException):
            raise result
        return result

    def _started(self) -> Connection:
        if self._pipe is None or self._child is None or not self._child.is_alive():
            self._stop()
            self._pipe, theirs = FORK.Pipe()
            arguments = (self._function, theirs, self._pipe, self._memory_bytes, os.getpid())
            self._child = FORK.Process(target=_serve, args=arguments, daemon=True)
            self._child.start()
            theirs.close()
        return self._pipe

    def _crashed(self) -> ItemFailure:
        code = self._stop()
        cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        message = f"the {self._name} crashed ({cause}): re-save the image with another program"
        return ItemFailure(f"{self._name}_crash", message)

    def _stop(self) -> int | None:
        """Ends the child, if there is one, and returns its exit code if it ended by itself."""
        if self._child is None or self._pipe is None:
            return None
        self._pipe.close()  # a living child then exits, or is killed
        self._child.join(timeout=0.05)
        self._child.kill()
        self._child.join()
        code = self._child.exitcode
        self._child.close()
        self._child = self._pipe = None
        return code


def _serve(function: Callable, pipe: Connection, callers_end: Connection, memory_bytes: int, caller: int) -> None:
    """Processes items until the caller closes the pipe or ends."""
    callers_end.close()
    end_with_parent(caller)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # the caller reports crashes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    at_start = _address_space()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    while True:
        try:
            received = pipe.recv_bytes()
        except EOFError:
            os._exit(0)  # without the caller's exit handlers
        # The item is in memory twice, packed and unpacked; neither counts toward the limit.
        bound = at_start + 2 * len(received) + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bound if most < 0 else min(bound, most), most))
        result = _call(function, received, memory_bytes)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        pipe.send(result)


def _call(function: Callable, received: bytes, memory_bytes: int) -> object:
    """The function's result, an ItemFailure, or the exception that it raised."""
    try:
        return function(pickle.loads(received))
    except MemoryError:
        needed = f"decoding needs more than {memory_bytes:,} bytes of memory"
        return ItemFailure("out_of_memory", f"{needed}: make the image smaller")
    except Exception as error:  # noqa: BLE001 - it is raised in the caller
        error.add_note("".join(traceback.format_exception(error)))
        return error


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()
