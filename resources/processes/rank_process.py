"""A rank as a separate process, supervised by its Spark task, or by the process that it was forked from.

Its supervisor forwards each line as soon as it is written, reports if the rank was killed, and leaves no process
behind. No Dagster here: every task imports this file.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, AnyStr, Literal

from resources.processes.child_process import collect_rarely, end_with_parent

Distributor = Literal["horovod", "torch_distributor", "tensorflow_distributor"]  # the library that starts the ranks

FAILURE_MARK = "image_assets rank failure: "
# Parts of the messages with which Horovod, Gloo and TensorFlow report that another rank is gone.
CONSEQUENCES = (
    "Horovod has been shut down",
    "onnection closed by peer",
    "onnection reset by peer",
    "Collective ops is",
)

Write = Callable[[str], object]
POLL_SECONDS = 0.1
# Set by the two distributors for their ranks. Spark's Python workers keep them for later tasks.
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TENSORFLOW_VARIABLES = ("TF_CONFIG",)


@dataclass(frozen=True)
class FailureReport:
    """Why a rank ended: the exception's type, message and traceback."""

    type: str
    message: str
    trace: str

    def to_line(self) -> str:
        """The failure on one line of stderr."""
        return FAILURE_MARK + json.dumps(asdict(self))

    @property
    def is_consequence(self) -> bool:
        """Whether the rank only failed because another one did."""
        return self.type == "HorovodInternalError" or any(part in self.message for part in CONSEQUENCES)


def failure_in(line: str) -> FailureReport | None:
    """The failure in a line of a rank's stderr, or None."""
    _, mark, report = line.partition(FAILURE_MARK)
    return FailureReport(**json.loads(report)) if mark else None


# Any: the function is the caller's, and so are its arguments and results.
def call_on_rank(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls the function and returns its result, with log messages on stdout; see `reported`."""
    logger = logging.getLogger("image_assets")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return reported(function, *args, **kwargs)


def reported(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the function and returns its result; an exception is reported on stderr and ends the process."""
    collect_rarely()
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        failure = FailureReport(type(error).__name__, str(error), traceback.format_exc())
        sys.stderr.write(f"\n{failure.to_line()}\n")
        sys.stderr.flush()
        raise SystemExit(1) from error


def run_call(call: bytes, returned: Path, *, waits: bool = False) -> None:
    """Makes a pickled call on this rank, writes its result to a file, and ends the process.

    With `waits`, a process that has a result does not end until its standard input does.
    """
    code = 1
    try:
        call_on_rank(write_result, [call, returned], {})
        code = 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if waits and not code:
            sys.stdin.read()
        os._exit(code)  # a normal exit may abort, because some libraries leave threads running


def write_result(call: bytes, returned: Path) -> None:
    """Makes a pickled call and writes its result to a file, which is there only if it is whole."""
    from pyspark import cloudpickle

    function, args, kwargs = pickle.loads(call)
    part = returned.with_name(f"{returned.name}.part")
    part.write_bytes(cloudpickle.dumps(function(*args, **kwargs)))
    part.rename(returned)


@dataclass(frozen=True)
class DriverAddress:
    """The driver's listener, and the key that authenticates ranks."""

    host: str
    port: int
    key: bytes


def run_watched(
    command: Sequence[str], environment: Mapping[str, str], stop: threading.Event, *, stdout: Write, stderr: Write
) -> int:
    """Runs a command until it ends or `stop` is set; see `watch`."""
    return watch(start(command, environment), stop, stdout=stdout, stderr=stderr)


def start(
    command: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts a command, whose output `watch` forwards, in a new process group."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def watch(process: subprocess.Popen[str], stop: threading.Event, *, stdout: Write, stderr: Write) -> int:
    """Waits until a command ends or `stop` is set, and then kills its process group.

    Returns:
        The exit code, or minus the number of the signal that killed the command.
    """
    forwarding = [forward(process.stdout or (), stdout), forward(process.stderr or (), stderr)]
    try:
        while process.poll() is None and not stop.wait(POLL_SECONDS):
            pass
    finally:
        kill_group(process.pid)
        code = process.wait()
        for thread in forwarding:
            thread.join()
    if code < 0 and not stop.is_set():
        stderr(killed(-code).to_line() + "\n")
    return code


def forward(lines: Iterable[AnyStr], write: Callable[[AnyStr], object]) -> threading.Thread:
    """Forwards each line as soon as it is written, in a thread."""

    def forward_all() -> None:
        for line in lines:
            write(line)

    thread = threading.Thread(target=forward_all, daemon=True)
    thread.start()
    return thread


def kill_group(leader: int) -> None:
    """Kills a process and its descendants, if they still run."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def killed(number: int) -> FailureReport:
    """The failure of a rank that a signal ended."""
    name = signal.Signals(number).name
    if number not in (signal.SIGKILL, signal.SIGTERM):
        return FailureReport("RankCrashed", f"A rank crashed (signal {number}, {name}).", "")
    remedy = "The machine may be out of memory (lower IMAGE_ASSETS_PROCESSES), or something killed the process."
    return FailureReport("RankKilled", f"A rank was killed from outside (signal {number}, {name}). {remedy}", "")


def run_torch_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Runs a pickled call on the rank that torchrun assigned to this process, which ends with torchrun."""
    end_with_parent(os.getppid())
    run_rank(int(os.environ["RANK"]), call, to_rank_environment(environment, TORCH_VARIABLES), driver)


def run_tensorflow_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Runs a pickled call on the rank that TensorFlow's cluster assigned to this task."""
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    run_rank(rank, call, to_rank_environment(environment, TENSORFLOW_VARIABLES), driver)


def to_rank_environment(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """A rank's environment: the task's, overridden by the driver's, overridden by the distributor's variables."""
    here = {name: value for name, value in os.environ.items() if name not in (*TORCH_VARIABLES, *TENSORFLOW_VARIABLES)}
    return {**here, **environment, **{name: os.environ[name] for name in (*names, "CUDA_VISIBLE_DEVICES")}}


def run_rank(rank: int, call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Runs a pickled call in a process, and sends the driver each line and the result.

    The process ends when the driver has the results of all ranks: another one may still be receiving what this one sent
    in the last exchange. The task succeeds even if the rank failed, because Spark would otherwise restart all ranks.
    """
    sending = threading.Lock()
    with (
        Client((driver.host, driver.port), authkey=driver.key) as connection,
        TemporaryDirectory(prefix="rank") as folder,
        ThreadPoolExecutor(1) as thread,
    ):

        def send(kind: str, payload: object) -> None:
            with sending:
                connection.send((kind, payload))

        Path(folder, "call").write_bytes(call)
        command = [sys.executable, "-m", "resources.processes.rank_process", folder, str(os.getpid())]
        process, returned = start(command, environment, subprocess.PIPE), Path(folder, "returned")
        outputs = {name: partial(send, name) for name in ("stdout", "stderr")}
        ended = thread.submit(watch, process, threading.Event(), **outputs)
        while not returned.exists() and not ended.done():
            time.sleep(POLL_SECONDS)
        if returned.exists():
            send("returned", (rank, returned.read_bytes()))
            with suppress(EOFError, OSError):  # the driver is gone
                connection.recv()
        if process.stdin:
            process.stdin.close()
        ended.result()
        send("ended", None)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    run_call(Path(sys.argv[1], "call").read_bytes(), Path(sys.argv[1], "returned"), waits=True)
