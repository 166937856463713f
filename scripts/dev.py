"""The Dagster and MLflow UIs and the gallery on this machine, with the sensors running; Ctrl-C stops all of it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import psutil
import urllib3
import yaml
from dagster import DagsterInstance

from resources.mlflow.mlflow_tracking import create_store
from resources.processes.child_process import end_with_parent
from resources.settings import Settings
from resources.web_protection import accepted_from_other_sites
from scripts.cluster import HOST
from scripts.home import open_home
from scripts.runs import end_lost_runs
from scripts.terminal import PROGRAM, ROOT, styled

BIN = Path(sys.executable).parent
GALLERY = [sys.executable, "-m", "gallery"]
WEBSERVER = [sys.executable, "-m", "scripts.webserver"]
RUN_WORKER = [sys.executable, "-m", "scripts.run_worker"]
START_SECONDS = 180
STOP_SECONDS = 20
RESTART_SECONDS = 60  # between two starts of a service that is restarted
CODE_LOCATION, CODE_SOCKET, WORKSPACE = "definitions", "code.sock", "workspace.yaml"
# By environment variable: the default port, and the page that responds once the service is healthy.
PORTS = {"DAGSTER_PORT": (3000, "/server_info"), "GALLERY_PORT": (4000, "/health"), "MLFLOW_PORT": (5000, "/health")}
# By service: a path that its pages post to, where an empty form changes nothing.
FORMS = {"dagster": "/graphql", "gallery": "/corrections", "mlflow": "/ajax-api/2.0/mlflow/experiments/search"}
AFTER_FAILURE = f"What to do: see its last log lines above. `{PROGRAM} doctor` tests each part of the setup."


@dataclass(frozen=True)
class Service:
    """A process to run; `url` is the page that users open, `health` the one that responds once it is up.

    If a service that is not `restarted` ends, all of them end.
    """

    name: str
    command: list[str]
    url: str = ""
    health: str = ""
    restarted: bool = False


def port(variable: str) -> int:
    """The port that the variable names; exits with a message if it is invalid or in use."""
    default, _ = PORTS[variable]
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise SystemExit(f"{variable} is {value!r}: expected a port from 1 to 65535, such as {default}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(value)))
        except OSError as error:
            raise SystemExit(
                f"Port {value} of {HOST} is not available ({error.strerror}). Stop the program that uses it, "
                f"or choose another port: {variable}={int(value) % 65535 + 1} {PROGRAM} dev"
            ) from error
    return int(value)


def code_server(folder: Path) -> Service:
    """The process that loads the graph for Dagster's UI and daemon; `workspace.yaml` in the folder leads to it.

    By default each of them starts its own, and the daemon another one every minute, which loads everything again.
    """
    location = {"socket": str(folder / CODE_SOCKET), "location_name": CODE_LOCATION}
    (folder / WORKSPACE).write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    code = ["-m", CODE_LOCATION, "-d", str(ROOT), "--inject-env-vars-from-instance"]
    return Service("code", [str(BIN / "dagster"), "code-server", "start", *code, "--socket", str(folder / CODE_SOCKET)])


def list_services(settings: Settings, folder: Path) -> list[Service]:
    """Dagster's UI, daemon and run worker, the gallery, and MLflow's UI if its store is in the home."""
    dagster = f"http://{HOST}:{port('DAGSTER_PORT')}"
    gallery = f"http://{HOST}:{port('GALLERY_PORT')}"
    workspace = ["-w", str(folder / WORKSPACE)]
    webserver = [*WEBSERVER, "-h", HOST, "-p", dagster.rpartition(":")[2], *workspace]
    services = [
        Service("dagster", webserver, dagster, f"{dagster}/server_info"),
        Service("daemon", [str(BIN / "dagster-daemon"), "run", *workspace]),  # sensors and queued runs
        *([Service("worker", RUN_WORKER, restarted=True)] if settings.worker_megabytes else []),
        Service("gallery", [*GALLERY, "--port", gallery.rpartition(":")[2]], gallery, f"{gallery}/health"),
    ]
    if settings.tracking_uri.startswith(("http:", "https:")):
        return services
    mlflow = f"http://{HOST}:{port('MLFLOW_PORT')}"
    server = [str(BIN / "mlflow"), "server", "--host", HOST, "--port", mlflow.rpartition(":")[2], "--workers", "1"]
    store = ["--backend-store-uri", settings.tracking_uri]
    artifacts = ["--artifacts-destination", settings.artifacts]
    # See scripts/webserver.py. By default, uvicorn would look for it in the current folder first.
    app = ["--app-name", "image-assets", "--uvicorn-opts", f"--app-dir {quote(str(ROOT))}"]
    return [*services, Service("mlflow", [*server, *store, *artifacts, *app], mlflow, f"{mlflow}/health")]


def start(service: Service, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts the service in its own session (so that Ctrl-C reaches only this program) and forwards its output.

    The service ends with this process, even if it is killed. Call this in the main thread: Linux takes the end of the
    thread that started a process for that of its parent.
    """
    process = subprocess.Popen(
        service.command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid()),
    )

    def forward() -> None:
        for line in process.stdout or ():
            print(f"{service.name:<8}| {line}", end="", flush=True)

    threading.Thread(target=forward, daemon=True).start()
    return process


def wait_for_code(folder: Path, process: subprocess.Popen[str], stopped: threading.Event) -> None:
    """Waits until the code server responds or ends; Dagster's UI and daemon need it when they start."""
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until and not stopped.wait(0.1):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(folder / CODE_SOCKET)) == 0:
                return


def is_up(url: str) -> bool:
    """Whether a server responds at this address with status 200."""
    try:
        # Unlike urllib, urllib3 sends requests to this machine past the proxy that variables such as http_proxy name.
        return urllib3.request("GET", url, timeout=5, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def descendants(processes: Sequence[subprocess.Popen[str]]) -> list[psutil.Process]:
    """The services and everything they started that is still running, also below a service that died."""
    sessions = {process.pid for process in processes}
    members: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
            if os.getsid(process.pid) in sessions:
                members |= {process, *process.children(recursive=True)}  # Horovod's ranks have their own sessions
    return list(members)


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Stops the services with their code servers, runs, Spark and Horovod's ranks."""
    running = descendants(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        running = psutil.wait_procs(running, timeout=STOP_SECONDS)[1]


def restart(service: Service, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a service again, after recording the runs that ended with it."""
    with DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        end_lost_runs(instance)
    return start(service, environment)


def supervise(
    services: Sequence[Service],
    processes: list[subprocess.Popen[str]],
    stopped: threading.Event,
    environment: dict[str, str],
    *,
    restart_seconds: float = RESTART_SECONDS,
) -> int:
    """Waits for Ctrl-C (returns 0) or a failure (returns 1), and prints the addresses once all services are up.

    The processes of restarted services are replaced in the list.
    """
    start_time, starting = time.monotonic(), [service for service in services if service.url]
    started = {service.name: start_time for service in services}
    while not stopped.wait(1):
        for index, (service, process) in enumerate(zip(services, processes, strict=True)):
            if process.poll() is None:
                continue
            if not service.restarted:
                return report_failure(f"{service.name} exited with code {process.returncode}; stopping the others.")
            if time.monotonic() - started[service.name] > restart_seconds:
                started[service.name] = time.monotonic()
                processes[index] = restart(service, environment)
        if not starting:
            continue
        if time.monotonic() - start_time > START_SECONDS:
            return report_failure(f"{starting[0].name} does not respond after {START_SECONDS} s.")
        accepted = {service.name: accepted_by(service) for service in starting}
        for name, what in accepted.items():
            if what:
                return report_failure(f"{name} accepts {what}; stopping all services.")
        starting = [service for service in starting if accepted[service.name] is None]
        if not starting:
            lines = [f"  {service.name:<8} {styled(service.url, 'strong')}" for service in services if service.url]
            title = styled("Open in a browser (Ctrl-C here stops everything):", "strong")
            print("\n".join(["", title, *lines, ""]), flush=True)
    return 0


def accepted_by(service: Service) -> str | None:
    """What a service accepts from other sites, in words; None while it is starting or too busy to respond."""
    if not is_up(service.health):
        return None
    with contextlib.suppress(urllib3.exceptions.HTTPError):  # the first pages of a busy machine take longer
        return " and ".join(accepted_from_other_sites(service.url, FORMS[service.name]))
    return None


def report_failure(message: str) -> int:
    """Prints the message with what to do next, and returns the exit code 1."""
    print(styled(message, "bad", sys.stderr), AFTER_FAILURE, sep="\n", file=sys.stderr)
    return 1


def main() -> int:
    """Starts all services, forwards their output, and stops them at the end."""
    settings = open_home()
    with DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        end_lost_runs(instance)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    with TemporaryDirectory(prefix="image-assets-") as name:  # only this user can connect to what is in it
        folder = Path(name)
        code, others = code_server(folder), list_services(settings, folder)
        return run_services(code, others, folder, stopped, settings)


def to_environment(settings: Settings) -> dict[str, str]:
    """The environment of the services."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(settings.dagster_home),
        "IMAGE_ASSETS_HOME": str(settings.home),
        "IMAGE_ASSETS_LANDING": str(settings.landing),
        # Saves seven processes of 240 MB each, which only MLflow's language-model features need.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
        # The services run in the current folder, to which settings may be relative, but import no modules from it.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
    }


def run_services(
    code: Service, others: Sequence[Service], folder: Path, stopped: threading.Event, settings: Settings
) -> int:
    """Runs the code server and then the other services until Ctrl-C or a failure; returns the exit code."""
    environment, processes = to_environment(settings), list[subprocess.Popen[str]]()
    try:
        processes.append(start(code, environment))
        # MLflow's server and the sensors would both create it, each in the other's way.
        create_store(settings.tracking_uri)
        wait_for_code(folder, processes[0], stopped)
        processes.extend(start(service, environment) for service in others)
        return supervise([code, *others], processes, stopped, environment)
    finally:
        stop(processes)
