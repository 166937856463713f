"""Dagster's run launcher: hands runs that sensors request to the run worker of `make dev`, which has everything loaded.

Without a free worker, a run starts in a process of its own, as with Dagster's default launcher. The two talk over a
Unix socket next to Dagster's settings, in lines of JSON that hold nothing but ids.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import psutil

SENSOR_TAG = "dagster/sensor_name"
RUN_BY = "image_assets/process"  # the process that runs it, if no code server started it: machine, id, start
LAUNCHED_BY = ".dagster/grpc_info"  # Dagster's tag: the code server that started the run
MACHINE = "image_assets/machine"  # the machine of that code server, if the two share a socket
SOCKET_FILE = "run_worker.sock"
ANSWER_SECONDS = 5.0
TICK_SECONDS = 0.01  # the precision of a process's start
MAX_ADDRESS = 100  # characters; a Unix socket's address has at most 103 on macOS and 107 on Linux


@contextmanager
def socket_address(dagster_home: Path) -> Iterator[str]:
    """The address of the worker's socket; a folder with a long path is named by its descriptor."""
    file = dagster_home / SOCKET_FILE
    if len(os.fsencode(file)) <= MAX_ADDRESS:
        yield str(file)
        return
    folder = os.open(dagster_home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_FILE}"
    finally:
        os.close(folder)


@contextmanager
def connected(dagster_home: Path) -> Iterator[socket.socket]:
    """A connection to the run worker; OSError if there is none."""
    with closing(socket.socket(socket.AF_UNIX)) as connection, socket_address(dagster_home) as address:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(address)
        yield connection


def send(connection: socket.socket, message: dict[str, object]) -> None:
    """Sends one message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, object]:
    """Receives one message; empty if the other side has closed the connection."""
    received = b""
    while not received.endswith(b"\n"):
        if not (part := connection.recv(4096)):
            return {}
        received += part
    return json.loads(received)


def process_identity() -> list[str | int | float]:
    """This process: machine, process id, and start in seconds after the machine's, because ids are reused.

    A time of day would not do: that of a process changes whenever the clock is set.
    """
    process = psutil.Process()
    return [socket.gethostname(), process.pid, process.create_time() - psutil.boot_time()]


def is_running(process_id: int, start: float) -> bool:
    """Whether the process with this id is still the one that started then; earlier releases recorded a time of day."""
    try:
        created = psutil.Process(process_id).create_time()
    except psutil.NoSuchProcess:
        return False
    return min(abs(created - psutil.boot_time() - start), abs(created - start)) < TICK_SECONDS


def other_machine(run: dg.DagsterRun) -> str | None:
    """The machine that runs it, if that is another one and nobody else can reach the run's process or code server."""
    if run.tags.get(RUN_BY):
        machine = json.loads(run.tags[RUN_BY])[0]
    elif "socket" in json.loads(run.tags.get(LAUNCHED_BY, "{}")):
        machine = run.tags.get(MACHINE)
    else:
        return None
    return None if machine == socket.gethostname() else machine


class WarmRunLauncher(dg.DefaultRunLauncher):
    """Dagster's default launcher, except for runs that sensors request while the run worker is free."""

    def launch_run(self, context) -> None:  # a LaunchRunContext, whose type is not public
        """Starts a run, in the run worker or in a process of its own."""
        run: dg.DagsterRun = context.dagster_run
        if SENSOR_TAG in run.tags and self._hand_over(run.run_id):
            return
        tagged = self._instance.get_run_by_id(run.run_id)
        if tagged and tagged.tags.get(RUN_BY):  # copied from the parent of a re-execution, or a hand-over failed
            self._instance.add_run_tags(run.run_id, {RUN_BY: ""})
        self._instance.add_run_tags(run.run_id, {MACHINE: socket.gethostname()})
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """Interrupts a run, whatever process of this machine runs it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if machine := other_machine(run):  # marked as canceling, it would lose its pools after a while, and go on
            self._instance.report_engine_event(f"Not terminated: only the UI on {machine} can do that.", run)
            return False
        if not run.tags.get(RUN_BY):
            return super().terminate(run_id)
        self._instance.report_run_canceling(run)
        if SENSOR_TAG in run.tags:  # only such runs are handed over
            return self._interrupt_in_worker(run_id)
        _, process_id, start = json.loads(run.tags[RUN_BY])
        if running := is_running(process_id, start):
            os.kill(process_id, signal.SIGINT)
        return running

    def _interrupt_in_worker(self, run_id: str) -> bool:
        """Whether the worker has the run, and interrupts it."""
        try:
            with connected(self._dagster_home) as connection:
                send(connection, {"terminate": run_id})
                return bool(receive(connection).get("terminated"))
        except (OSError, ValueError):
            return False

    @property
    def _dagster_home(self) -> Path:
        return Path(self._instance.root_directory)

    def _hand_over(self, run_id: str) -> bool:
        """Whether the worker took the run.

        It starts the run only after a second message, so that a run is never started twice: if this process gives up,
        its connection closes before that message.
        """
        try:
            with connected(self._dagster_home) as connection:
                send(connection, {"run": run_id})
                if process := receive(connection).get("process"):
                    self._instance.add_run_tags(run_id, {RUN_BY: json.dumps(process)})
                    send(connection, {"start": run_id})
                return bool(process)
        except (OSError, ValueError):  # there is no worker, or it died
            return False
