"""Horovod's Spark task, in which its rank is watched.

No Dagster here: every task imports this file.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TextIO

from resources.processes.rank_process import run_watched


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """The module with another value under the name."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


# Any: what Horovod's task takes and returns is between Horovod and itself.
def run_task(*args: Any) -> Any:
    """Horovod's task, with its rank started at once.

    Horovod would start a Python of its own first, in between, for about a second, and lose which signal killed a rank.
    """
    from horovod.runner.common.util import safe_shell_exec
    from horovod.spark import runner

    with replaced(safe_shell_exec, "execute", execute):
        return runner._task_fn(*args)


def execute(
    command: str,
    *,
    env: Mapping[str, str],
    stdout: TextIO,
    stderr: TextIO,
    events: Sequence[threading.Event],
    **_: object,
) -> int:
    """The exit code of a shell's command, as Horovod asks for it."""
    (stop,) = events
    # Without the shell in between the rank sees when this process ends.
    return run_watched(["/bin/sh", "-c", f"exec {command}"], env, stop, stdout=stdout.write, stderr=stderr.write)
