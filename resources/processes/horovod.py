"""Runs a function on Horovod's ranks, and lists everything this project changes in Horovod.

Horovod 0.28.1 (2023) is its last release. It does not build against current frameworks, and its launcher assumes that
it owns the process. `ADAPTATIONS` is the complete list of changes; each says why it is needed and when it can go.

The installer imports this file before anything is installed, and every Spark task imports it too: only the standard
library at import time, no Dagster, and no syntax newer than Python 3.7.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codecs import StreamReader
    from typing import Literal, TextIO

    from pyspark.sql import SparkSession

    from resources.processes.ranks import RankOutput

START_TIMEOUT_SECONDS = 180
KERAS_BACKEND = (
    r"^if is_version_greater_equal_than\(tf\.__version__, \"2\.6\.0\"\):\n"
    r"    from keras import backend as K\nelse:\n    from tensorflow\.python\.keras import backend as K\n"
)
KERAS_3_GUARD = """\
    if not hasattr(optimizer, "_compute_gradients") and not hasattr(optimizer, "compute_gradients"):
        raise TypeError(
            "Horovod's DistributedOptimizer cannot average the gradients of a Keras 3 optimizer: "
            "use horovod.tensorflow.DistributedGradientTape, or a legacy optimizer of tf-keras"
        )
"""


@dataclass(frozen=True)
class SourceEdit:
    """A change to one file of Horovod's source, made before `scripts/horovod_wheel.py` builds it.

    `pattern` is a multi-line regular expression that matches exactly one place in the file.
    """

    file: str
    pattern: str
    replacement: str
    reason: str
    drop_when: str


@dataclass(frozen=True)
class RuntimeReplacement:
    """An attribute of a module that is replaced during a run: in the driver, or in each Spark task.

    `create` gets the original value and the event that stops the run, and returns the replacement.
    """

    module: str
    attribute: str
    side: Literal["driver", "task"]
    create: Callable[[Any, threading.Event], object]
    reason: str
    drop_when: str


# The wheel's cache folder contains a hash of the edits' files, patterns and replacements, in this order: changing one
# of them rebuilds the wheel. Reasons and conditions are not hashed.
ADAPTATIONS: tuple[SourceEdit | RuntimeReplacement, ...] = (
    SourceEdit(
        "CMakeLists.txt",
        pattern=r"set\(CMAKE_CXX_STANDARD 14\)",
        replacement="set(CMAKE_CXX_STANDARD 17)",
        reason="The headers of current TensorFlow and PyTorch need C++17.",
        drop_when="Horovod compiles as C++17 or newer.",
    ),
    SourceEdit(
        "CMakeLists.txt",
        pattern=r'^string\(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO .*$',
        replacement='set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")',
        reason="-O3 and debug information, which the linker drops again, take 40 % of the compiler's time.",
        drop_when="Horovod takes the optimization level from the environment, and adds no debug information.",
    ),
    SourceEdit(
        "horovod/torch/CMakeLists.txt",
        pattern=r"set\(CMAKE_CXX_STANDARD 14\)",
        replacement="set(CMAKE_CXX_STANDARD 17)",
        reason="The headers of current PyTorch need C++17.",
        drop_when="Horovod compiles as C++17 or newer.",
    ),
    SourceEdit(
        "horovod/tensorflow/xla_mpi_ops.cc",
        pattern=r"^#if TENSORFLOW_VERSION >= 2006000000$",
        replacement="#if TENSORFLOW_VERSION >= 2006000000 && HAVE_GPU",
        reason="The XLA operations do not compile without a GPU.",
        drop_when="Horovod's XLA operations compile on a CPU.",
    ),
    SourceEdit(
        "horovod/tensorflow/keras/__init__.py",
        pattern=KERAS_BACKEND,
        replacement="K = keras.backend\n",
        reason="Horovod must use the backend of the Keras that TensorFlow uses; `keras` may be another one.",
        drop_when="Horovod takes the backend from `tf.keras`.",
    ),
    SourceEdit(
        "horovod/tensorflow/keras/callbacks.py",
        pattern=KERAS_BACKEND,
        replacement="K = keras.backend\n",
        reason="As in `horovod/tensorflow/keras/__init__.py`.",
        drop_when="Horovod takes the backend from `tf.keras`.",
    ),
    SourceEdit(
        "horovod/_keras/__init__.py",
        pattern=r"^    class _DistributedOptimizer\(\*optimizer\.__class__\.__bases__\):\n",
        replacement=KERAS_3_GUARD + r"\g<0>",
        reason="Horovod wraps a Keras 3 optimizer but averages nothing: each rank silently trains its own model.",
        drop_when="Horovod's DistributedOptimizer supports Keras 3 optimizers.",
    ),
    RuntimeReplacement(
        "horovod.runner.gloo_run",
        "register_shutdown_event",
        side="driver",
        create=lambda original, stop: lambda: stop,
        reason="Horovod replaces the handlers of SIGINT and SIGTERM for good, so a Dagster run could not be canceled.",
        drop_when="Horovod restores the signal handlers it found, or accepts an event that stops a run.",
    ),
    RuntimeReplacement(
        "horovod.runner.common.util.network",
        "shutil",
        side="driver",
        create=lambda original, stop: SimpleNamespace(**{**vars(original), "copyfileobj": copy_lines}),
        reason="Horovod forwards the ranks' output in blocks of 64 KiB, long after it was written.",
        drop_when="Horovod forwards output line by line.",
    ),
    RuntimeReplacement(
        "horovod.runner.launch",
        "gloo_built",
        side="driver",
        create=lambda original, stop: lambda verbose: True,
        reason="To see whether Gloo was built, Horovod imports TensorFlow in a fork of the driver, for many seconds.",
        drop_when="Horovod checks for Gloo without importing a framework.",
    ),
    RuntimeReplacement(
        "horovod.spark.runner",
        "_task_fn",
        side="driver",
        create=lambda original, stop: run_task,
        reason="Makes the replacements of each Spark task, below.",
        drop_when="No replacement has the side `task`.",
    ),
    RuntimeReplacement(
        "threading",
        "excepthook",
        side="driver",
        create=lambda original, stop: HideCanceledJob(original),
        reason="When a rank fails, Horovod cancels its Spark job, and its thread prints two pages about that.",
        drop_when="Horovod catches the error of the Spark job that it cancels.",
    ),
    RuntimeReplacement(
        "horovod.runner.common.util.safe_shell_exec",
        "execute",
        side="task",
        create=lambda original, stop: execute,
        reason="Horovod starts each rank through another Python process, which takes a second and hides the signal "
        "that killed a rank.",
        drop_when="Horovod starts ranks directly and reports the signal that killed one.",
    ),
)


# Any: the function is the caller's, and so are its arguments and results.
def run_with_horovod(
    spark: SparkSession,
    processes: int,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """What the function returns on each Horovod rank, in order of rank; each rank takes a slot of Spark."""
    import horovod.spark

    from resources.processes.rank_process import call_on_rank
    from resources.processes.ranks import Failures, RankOutput, check_slots, rank_environment

    check_slots(spark, processes)
    stop = threading.Event()
    failures = Failures(stop.set)
    with replacements("driver", stop):
        try:
            return horovod.spark.run(
                call_on_rank,
                args=(function, args, kwargs),
                num_proc=processes,
                start_timeout=START_TIMEOUT_SECONDS,
                use_gloo=True,
                env=rank_environment(processes),
                stdout=RankOutput(sys.stdout, failures),
                stderr=RankOutput(sys.stderr, failures),
                verbose=0,
            )
        except RuntimeError as error:
            raise failures.to_error(processes) from error
        finally:
            failures.close()
            stop.set()


@contextmanager
def replacements(side: Literal["driver", "task"], stop: threading.Event) -> Iterator[None]:
    """Makes the runtime replacements of one side, and restores the originals after the block."""
    with ExitStack() as restore:
        for change in ADAPTATIONS:
            if isinstance(change, RuntimeReplacement) and change.side == side:
                module = importlib.import_module(change.module)
                original = getattr(module, change.attribute)
                restore.callback(setattr, module, change.attribute, original)
                setattr(module, change.attribute, change.create(original, stop))
        yield


class HideCanceledJob:
    """An exception hook for threads that ignores the error of a canceled Spark job."""

    def __init__(self, original: Callable[[threading.ExceptHookArgs], object]) -> None:
        self._original = original

    def __call__(self, raised: threading.ExceptHookArgs) -> None:
        """Passes every other error on."""
        if "cancelled job group" not in str(raised.exc_value):
            self._original(raised)


def copy_lines(source: StreamReader, target: RankOutput) -> None:
    """Forwards each line as soon as it is written."""
    for line in io.TextIOWrapper(source.stream, encoding="utf-8", errors="replace"):  # pyright: ignore[reportArgumentType]
        target.write(line)


# Any: Horovod's task passes its own values.
def run_task(*args: Any) -> Any:
    """Runs Horovod's Spark task with the replacements for tasks (in an executor)."""
    from horovod.spark import runner

    with replacements("task", threading.Event()):
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
    """Runs a rank's shell command and returns its exit code, with the signature that Horovod calls."""
    from resources.processes.rank_process import run_watched

    (stop,) = events
    # `exec`: the rank must be a direct child, so that it notices when this process ends.
    return run_watched(["/bin/sh", "-c", f"exec {command}"], env, stop, stdout=stdout.write, stderr=stderr.write)
