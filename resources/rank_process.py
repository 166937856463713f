"""A rank as a process of its own, watched by the Spark task in which it runs.

The task forwards each line as soon as it is there, tells when the process was killed, and leaves none behind. No
Dagster here: every task imports this file.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from resources.child_process import end_with
from resources.rank import Failure

Write = Callable[[str], object]
LOOK_SECONDS = 0.1
# What the two distributors tell their ranks. Spark's Python processes still have it in later tasks.
TOLD_BY_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TOLD_BY_TENSORFLOW = ("TF_CONFIG",)


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
        while process.poll() is None and not stop.wait(LOOK_SECONDS):
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


def killed(number: int) -> Failure:
    """The failure of a rank that a signal has ended."""
    name = signal.Signals(number).name
    if number not in (signal.SIGKILL, signal.SIGTERM):
        return Failure("RankCrashed", f"a rank crashed (signal {number}, {name})", "")
    remedy = "look for a lack of memory (IMAGE_ASSETS_PROCESSES lowers the need), or for who ended the process"
    return Failure("RankKilled", f"a rank was killed from outside (signal {number}, {name}): {remedy}", "")


def run_torch_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Run a pickled call on the rank that torchrun gave to this process, which ends with torchrun."""
    end_with(os.getppid())
    run_rank(int(os.environ["RANK"]), call, told(environment, TOLD_BY_TORCH), driver)


def run_tensorflow_rank(call: bytes, environment: Mapping[str, str], driver: DriverAddress) -> None:
    """Run a pickled call on the rank that TensorFlow's cluster gave to this task."""
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    run_rank(rank, call, told(environment, TOLD_BY_TENSORFLOW), driver)


def told(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The task's environment, with the driver's in front of it, and in front of that what the distributor told."""
    here = {name: value for name, value in os.environ.items() if name not in (*TOLD_BY_TORCH, *TOLD_BY_TENSORFLOW)}
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
            [sys.executable, "-m", "resources.rank", folder, str(os.getpid())],
            environment,
            threading.Event(),
            stdout=partial(send, "stdout"),
            stderr=partial(send, "stderr"),
        )
        returned = Path(folder, "returned")
        connection.send(("returned", (rank, returned.read_bytes())) if returned.exists() else ("failed", None))
