"""A child process with limits of CPU time and memory, for work that hostile files may crash.

Items go through a pipe one by one, so that it is known which of them crashed or hung. A general process pool works on
chunks of items, and cannot tell.
"""

import faulthandler
import math
import os
import pickle
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Generic, Self, TypeVar

import psutil

from resources.delta.local_tasks import require_running
from resources.processes.child_process import end_with_parent

FORK = get_context("fork")  # starts in milliseconds, with the decoders loaded already
STOP_SECONDS = 0.2  # between two looks whether the task is to end
PATIENCE = 10  # seconds of waiting for each second of CPU time: a busy machine or a slow disk is not the item's fault

# Held while a child starts or ends: another thread's child would inherit this one's end of the pipe, so that a crash
# went unnoticed, and multiprocessing may collect the exit code of a child that another thread waits for.
_CHILDREN = threading.Lock()

CPU_LIMIT = signal.SIGPROF  # ends the child when the timer of its CPU time, ITIMER_PROF, expires

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
    with the process that started it, however that ends. In a local task that is stopped, an item is not waited for.

    Args:
        function: What the child does.
        memory_bytes: How much memory an item may need, in address space.
        name: What messages call the child.
        outlives_thread: Whether the child goes on when the thread that runs the first item ends.
        temporary_files: Whether the child has a folder for temporary files, which are deleted when it has ended,
            however that happens.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        *,
        memory_bytes: int,
        name: str = "decoder",
        outlives_thread: bool = False,
        temporary_files: bool = False,
    ) -> None:
        self._function = function
        self._memory_bytes = memory_bytes
        self._name = name
        self._outlives_thread = outlives_thread
        self._temporary_files = temporary_files
        self._child = self._pipe = self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the child; the next item starts another one."""
        self._stop()

    def run(self, item: Item, *, cpu_seconds: float, wall_seconds: float | None = None) -> Result | ItemFailure:
        """The function's result, or why there is none.

        Args:
            item: The function's argument.
            cpu_seconds: How much CPU time the function may take, in all its threads; the kernel ends it then.
            wall_seconds: How long to wait for it, for example if it sleeps; PATIENCE times its CPU time by default.
        """
        pipe = self._started()
        wall_seconds = PATIENCE * cpu_seconds if wall_seconds is None else wall_seconds
        try:
            pipe.send((item, cpu_seconds))
            if not _answers(pipe, wall_seconds):
                self._stop()
                return self._timeout(f"{wall_seconds:,.0f} s")
            result = pipe.recv()
        except (EOFError, ConnectionError):
            code = self._stop()
            return self._timeout(f"{cpu_seconds:,.0f} s of CPU time") if code == -CPU_LIMIT else self._crash(code)
        if isinstance(result, BaseException):
            raise result
        return result

    def _started(self) -> Connection:
        if self._pipe is None or self._child is None or not self._child.is_alive():
            self._stop()
            # Not a TemporaryDirectory: other children would delete it with their copy of this object.
            self._folder = tempfile.mkdtemp() if self._temporary_files else None
            with _CHILDREN:
                self._pipe, theirs = FORK.Pipe()
                arguments = (self._function, theirs, self._pipe, self._memory_bytes, os.getpid(), self._folder)
                self._child = FORK.Process(target=_serve, args=arguments, daemon=True)
                if self._outlives_thread:
                    _lasting_thread(os.getpid()).submit(self._child.start).result()
                else:
                    self._child.start()
                theirs.close()
        return self._pipe

    def _timeout(self, limit: str) -> ItemFailure:
        message = f"the {self._name} took more than {limit}: make the image smaller, or re-save it"
        return ItemFailure("timeout", message)

    def _crash(self, code: int | None) -> ItemFailure:
        cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        message = f"the {self._name} crashed ({cause}): re-save the image with another program"
        return ItemFailure(f"{self._name}_crash", message)

    def _stop(self) -> int | None:
        """Ends the child, if there is one, and returns its exit code if it ended by itself."""
        if self._child is None or self._pipe is None:
            return None
        with _CHILDREN:
            self._pipe.close()  # a living child then exits, or is killed
            self._child.join(timeout=0.05)
            self._child.kill()
            self._child.join()
            code = self._child.exitcode
            self._child.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._child = self._pipe = self._folder = None
        return code


@cache
def _lasting_thread(process: int) -> ThreadPoolExecutor:
    """A thread of this process that only starts children: the kernel ends a child with the thread that started it."""
    return ThreadPoolExecutor(1, f"children of {process}")


def _answers(pipe: Connection, seconds: float) -> bool:
    """Whether the child answers within this time; TaskStopped if the local task that waits is to end."""
    until = time.monotonic() + seconds
    while not pipe.poll(max(0.0, min(STOP_SECONDS, until - time.monotonic()))):
        require_running()
        if time.monotonic() >= until:
            return False
    return True


def _serve(
    function: Callable, pipe: Connection, callers_end: Connection, memory_bytes: int, caller: int, folder: str | None
) -> None:
    """Processes items until the caller closes the pipe or ends; temporary files go to the folder."""
    callers_end.close()
    if folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
    end_with_parent(caller)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # the caller reports crashes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(CPU_LIMIT, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    while True:
        # What the process holds already does not count toward the limit, such as libraries that earlier items needed.
        held = psutil.Process().memory_info().vms  # bytes of address space
        try:
            received = pipe.recv_bytes()
        except EOFError:
            os._exit(0)  # without the caller's exit handlers
        # The item is in memory twice, packed and unpacked; neither counts toward the limit.
        bound = held + 2 * len(received) + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bound if most < 0 else min(bound, most), most))
        result = _call(function, received, memory_bytes)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        pipe.send(result)


def _call(function: Callable, received: bytes, memory_bytes: int) -> object:
    """The function's result, an ItemFailure, or the exception that it raised."""
    try:
        item, cpu_seconds = pickle.loads(received)
        if math.isfinite(cpu_seconds):
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        return function(item)
    except MemoryError:
        needed = f"decoding needs more than {memory_bytes:,} bytes of memory"
        return ItemFailure("out_of_memory", f"{needed}: make the image smaller")
    except Exception as error:  # noqa: BLE001 - it is raised in the caller
        error.add_note("".join(traceback.format_exception(error)))
        return error
