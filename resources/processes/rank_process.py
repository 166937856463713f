"""A rank as a process of its own, watched by the Spark task in which it runs.

The task forwards each line as soon as it is there, tells when the process was killed, and leaves none behind. No
Dagster here: every task imports this file.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

from resources.processes.child_process import end_with_parent

Distributor = Literal["horovod", "torch_distributor", "tensorflow_distributor"]  # what starts the ranks

FAILURE_MARK = "image_assets rank failure: "
# How Horovod, Gloo and TensorFlow say on one rank that another one is gone.
CONSEQUENCES = (
    "Horovod has been shut down",
    "onnection closed by peer",
    "onnection reset by peer",
    "Collective ops is",
)


@dataclass(frozen=True)
class FailureReport:
    """What ended a rank: the type of an exception, its message, and the traceback."""

    type: str
    message: str
    trace: str

    def to_line(self) -> str:
        """The failure on one line of stderr."""
        return FAILURE_MARK + json.dumps(asdict(self))

    @property
    def is_consequence(self) -> bool:
        """Whether the rank only ended because another one did."""
        return self.type == "HorovodInternalError" or any(words in self.message for words in CONSEQUENCES)


def failure_in(line: str) -> FailureReport | None:
    """The failure that a line of a rank's stderr tells of, if it does."""
    _, mark, report = line.partition(FAILURE_MARK)
    return FailureReport(**json.loads(report)) if mark else None


# Any: the function is the caller's, and so is what it takes and returns.
def call_on_rank(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the function returns; an exception is told on stderr and ends the process."""
    logger = logging.getLogger("image_assets")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        failure = FailureReport(type(error).__name__, str(error), traceback.format_exc())
        sys.stderr.write(f"\n{failure.to_line()}\n")
        sys.stderr.flush()
        raise SystemExit(1) from error


def run_pickled_call(folder: Path) -> None:
    """Call what is pickled in the folder, and leave there what it returned."""
    from pyspark import cloudpickle

    function, args, kwargs = pickle.loads((folder / "call").read_bytes())
    (folder / "returned").write_bytes(cloudpickle.dumps(function(*args, **kwargs)))


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    call_on_rank(run_pickled_call, [Path(sys.argv[1])], {})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # a library whose threads still run aborts a Python that takes its leave of it


Write = Callable[[str], object]
POLL_SECONDS = 0.1
# What the two distributors tell their ranks. Spark's Python processes still have it in later tasks.
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TENSORFLOW_VARIABLES = ("TF_CONFIG",)


@dataclass(frozen=True)
class DriverAddress:
    """Where the driver listens, and the key that opens it."""

    host: str
    port: int
    key: bytes


def run_watched(
    command: Sequence[str], environment: Mapping[str, str], stop: threading.Event, *, stdout: Write, stderr: Write
) -> int:
    """The command's exit code, minus the signal that killed it; `stop` kills it, and what it has started with it."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    streams = ((process.stdout, stdout), (process.stderr, stderr))
    forwarding = [threading.Thread(target=forward, args=pair, daemon=True) for pair in streams]
    for thread in forwarding:
        thread.start()
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


def forward(lines: IO[str], write: Write) -> None:
    """Hand on each line as soon as it is there."""
    for line in lines:
        write(line)


def kill_group(leader: int) -> None:
    """Kill a process and what it has started, as far as they still run."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def killed(number: int) -> FailureReport:
    """The failure of a rank that a signal has ended."""
    name = signal.Signals(number).name
    if number not in (signal.SIGKILL, signal.SIGTERM):
        return FailureReport("RankCrashed", f"a rank crashed (signal {number}, {name})", "")
    remedy = "look for a lack of memory (IMAGE_ASSETS_PROCESSES lowers the need), or for who ended the process"
    return FailureReport("RankKilled", f"a rank was killed from outside (signal {number}, {name}): {remedy}", "")


def run_torch_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Run a pickled call on the rank that torchrun gave to this process, which ends with torchrun."""
    end_with_parent(os.getppid())
    run_rank(int(os.environ["RANK"]), call, to_rank_environment(environment, TORCH_VARIABLES), driver)


def run_tensorflow_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Run a pickled call on the rank that TensorFlow's cluster gave to this task."""
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    run_rank(rank, call, to_rank_environment(environment, TENSORFLOW_VARIABLES), driver)


def to_rank_environment(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The task's environment, with the driver's in front of it, and in front of that what the distributor told."""
    here = {name: value for name, value in os.environ.items() if name not in (*TORCH_VARIABLES, *TENSORFLOW_VARIABLES)}
    return {**here, **environment, **{name: os.environ[name] for name in (*names, "CUDA_VISIBLE_DEVICES")}}


def run_rank(rank: int, call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Run a pickled call in a process; the driver is told each line, and in the end what it returned, if it did.

    The task succeeds also where the rank failed: Spark would start all of them again.
    """
    sending = threading.Lock()
    with (
        Client((driver.host, driver.port), authkey=driver.key) as connection,
        TemporaryDirectory(prefix="rank") as folder,
    ):

        def send(stream: str, line: str) -> None:
            with sending:
                connection.send((stream, line))

        Path(folder, "call").write_bytes(call)
        run_watched(
            [sys.executable, "-m", "resources.processes.rank_process", folder, str(os.getpid())],
            environment,
            threading.Event(),
            stdout=partial(send, "stdout"),
            stderr=partial(send, "stderr"),
        )
        returned = Path(folder, "returned")
        connection.send(("returned", (rank, returned.read_bytes())) if returned.exists() else ("failed", None))
