"""The run worker of `make dev`: one process that has everything loaded and runs what sensors request, one by one.

It executes a run as `dagster api execute_run` does in a process of its own, so the run looks the same in Dagster. After
a run that failed or was canceled, after RUNS runs, above the memory limit, or when a file of the code has changed, the
process ends, and `make dev` starts another one.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType

import dagster as dg
import psutil

from resources.delta.table import MEBIBYTE
from resources.locks import locked
from resources.mlflow.model_registry import RegistryUnavailable
from resources.processes.child_process import collect_rarely, end_with_parent
from resources.run_launcher import SOCKET_FILE, process_identity, receive, send, socket_address
from resources.settings import read_settings

RUNS = 200  # then another process takes over, whatever libraries have piled up by then
IDLE_SECONDS = 600  # without a run, until another process takes over if that gives back memory
CHECK_SECONDS = 5.0  # between two looks at the files of the code and the memory
CONFIRM_SECONDS = 10.0  # for a launcher, to say that the run may start
LOCK_FILE = "run_worker.lock"
LIBRARIES = ("matplotlib.backends.backend_agg", "matplotlib.figure", "mlflow", "scipy.ndimage")


class LoadedCode:
    """The files of all modules that this process has imported, and whether they are still the same on disk."""

    def __init__(self) -> None:
        self._started = psutil.Process().create_time() + 1  # Linux knows only the second in which it booted
        self._files: dict[str, tuple[int, int]] = {}

    def changed_file(self) -> str:
        """A file that was changed since it was imported; empty if there is none."""
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if not isinstance(file, str):
                continue
            try:
                found = Path(file).stat()
            except OSError:
                if file in self._files:
                    return file
                continue
            state = (found.st_mtime_ns, found.st_size)
            changed_since_start = self._started < found.st_mtime <= time.time()
            if self._files.setdefault(file, state) != state or changed_since_start:
                return file
        return ""


class RunWorker:
    """Takes runs from launchers in a thread, and executes them in the main thread, which alone receives signals.

    Args:
        code: The code of this process.
        limit_bytes: The memory that this process may use while it waits for runs, with its children.
        runs: How many runs it executes.
    """

    def __init__(self, code: LoadedCode, limit_bytes: float, runs: int) -> None:
        self._code = code
        self._limit_bytes = limit_bytes
        self._runs = runs
        self._first_bytes = memory_bytes()
        self._lock = threading.Lock()
        self._run_id: str | None = None  # the run that was taken
        self._ending = False
        self._to_execute: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen(self, listener: socket.socket) -> None:
        """Answers launchers, one after the other, until the process ends."""
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):
                connection.settimeout(CONFIRM_SECONDS)
                request = receive(connection)
                if run_id := request.get("terminate"):
                    send(connection, {"terminated": self._interrupt(run_id)})
                elif run_id := request.get("run"):
                    self._take(str(run_id), connection)

    def work(self) -> str:
        """Executes runs until another process has to take over, and returns the reason."""
        for number in range(self._runs):
            run_id, waiting_since = None, time.monotonic()
            while run_id is None:
                if reason := self._reason_to_end(idle_seconds=time.monotonic() - waiting_since):
                    return reason
                with suppress(queue.Empty):
                    run_id = self._to_execute.get(timeout=CHECK_SECONDS)
            status = execute(run_id)
            with self._lock:
                self._run_id = None
                self._ending = status is not dg.DagsterRunStatus.SUCCESS or number + 1 == self._runs
            if status is not dg.DagsterRunStatus.SUCCESS:  # what was interrupted may have left something half done
                return f"run {run_id} ended as {status.value}"
        return f"{self._runs} runs are done"

    def _take(self, run_id: str, connection: socket.socket) -> None:
        """Takes a run if this process is free and has the code that is on disk."""
        with self._lock:
            free = not self._ending and self._run_id is None and not self._code.changed_file()
            self._run_id = run_id if free else self._run_id
        if not free:
            return send(connection, {})
        confirmed = False
        try:
            send(connection, {"process": process_identity()})
            confirmed = receive(connection).get("start") == run_id
        finally:
            if confirmed:
                self._to_execute.put(run_id)
            else:
                with self._lock:
                    self._run_id = None

    def _interrupt(self, run_id: object) -> bool:
        """Interrupts a run as Dagster's own launcher does; False if this process does not execute it."""
        with self._lock:
            if run_id != self._run_id:
                return False
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return True

    def _reason_to_end(self, idle_seconds: float) -> str:
        """Why this process has to end now; empty if it need not, or if a run was taken."""
        used, reason = memory_bytes(), ""
        if file := self._code.changed_file():
            reason = f"{file} has changed"
        elif used > self._limit_bytes:
            reason = f"{used // MEBIBYTE:,} MiB of memory in use, the limit is {self._limit_bytes / MEBIBYTE:,.0f} MiB"
        elif idle_seconds > IDLE_SECONDS and used > 2 * self._first_bytes:
            reason = f"{used // MEBIBYTE:,} MiB of memory in use while idle"
        with self._lock:
            self._ending = bool(reason) and self._run_id is None
            return reason if self._ending else ""


def memory_bytes() -> int:
    """The memory of this process and its children, such as Spark's."""
    used = 0
    process = psutil.Process()
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            used += member.memory_info().rss
    return used


def execute(run_id: str) -> dg.DagsterRunStatus:
    """Executes a run in this process with Dagster's command line, and returns the status that it ended with."""
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None:
            raise ValueError(f"Run {run_id} is not in {instance.root_directory}: its launcher uses another instance.")
        arguments = {
            "__class__": "ExecuteRunArgs",
            "pipeline_origin": json.loads(dg.serialize_value(run.job_code_origin)),
            "pipeline_run_id": run_id,
            "instance_ref": None,  # the one in DAGSTER_HOME
            "set_exit_code_on_failure": None,
        }
        sys.argv = ["dagster", "api", "execute_run", json.dumps(arguments)]
        with suppress(SystemExit):
            dagster_command()()
        handle_signals()
        run = instance.get_run_by_id(run_id)
        if run and run.status is dg.DagsterRunStatus.CANCELING:  # it was terminated before its first step
            instance.report_run_canceled(run)
            return dg.DagsterRunStatus.CANCELED
        return run.status if run else dg.DagsterRunStatus.FAILURE


def dagster_command() -> Callable[[], None]:
    """The command `dagster`, which reads its arguments from `sys.argv`."""
    (command,) = entry_points(group="console_scripts", name="dagster")
    return command.load()


def handle_signals() -> None:
    """While no run is executed, SIGTERM ends this process, and SIGINT, which came too late for a run, does nothing."""

    def on_signal(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            sys.exit()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def serve(dagster_home: Path, *, limit_bytes: float, runs: int = RUNS) -> str:
    """Executes the runs that launchers hand over, until another process has to take over; returns the reason."""
    handle_signals()
    file = dagster_home / SOCKET_FILE
    file.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_address(dagster_home) as address:
            listener.bind(address)
        file.chmod(0o600)
        listener.listen()  # from here on, launchers can connect
        worker = RunWorker(LoadedCode(), limit_bytes, runs)
        threading.Thread(target=worker.listen, args=[listener], daemon=True).start()
        print("ready for runs that sensors request", flush=True)
        try:
            return worker.work()
        finally:
            file.unlink(missing_ok=True)


def load_everything() -> None:
    """Imports what small runs import, and opens the registry and Dagster's storage once."""
    from definitions import resources

    for name in LIBRARIES:
        import_module(name)
    with suppress(RegistryUnavailable):  # runs report that
        resources["model_registry"].versions()
    with dg.DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
    dagster_command()


def main() -> None:
    """The run worker of the instance in DAGSTER_HOME."""
    end_with_parent(os.getppid())
    collect_rarely()
    dagster_home = Path(os.environ["DAGSTER_HOME"])
    limit_bytes = read_settings().worker_megabytes * MEBIBYTE
    with locked(dagster_home / LOCK_FILE):  # one that another `make dev` left behind has to end first
        load_everything()
        reason = serve(dagster_home, limit_bytes=limit_bytes)
        print(f"another process takes over: {reason}", flush=True)


if __name__ == "__main__":
    main()
