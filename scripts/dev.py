"""The Dagster and MLflow UIs and the gallery on this machine, with the sensors running; Ctrl-C ends all of it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from dagster import DagsterInstance

from resources.settings import Settings
from scripts.home import prepared_home
from scripts.runs import end_lost_runs
from scripts.terminal import emphasized

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
GALLERY = [sys.executable, "-m", "gallery"]
HOST = "127.0.0.1"
START_SECONDS = 180
END_SECONDS = 20
# What `make dev` serves at: the variable, its default, and the page that says that it is well.
PORTS = {"DAGSTER_PORT": (3000, "/server_info"), "GALLERY_PORT": (4000, "/health"), "MLFLOW_PORT": (5000, "/health")}
AFTER_FAILURE = "What to do: its last lines above say why it failed; `make doctor` tries each part of the set-up."


@dataclass(frozen=True)
class Service:
    """One of the processes that are kept running; `url` is what a person opens."""

    name: str
    command: list[str]
    url: str = ""
    health: str = ""


def port(variable: str) -> int:
    """The port that the variable names, if nothing uses it."""
    default, _ = PORTS[variable]
    said = os.environ.get(variable) or str(default)
    if not said.isdecimal() or not 0 < int(said) < 65536:
        raise SystemExit(f"{variable} is {said!r}: expected a port from 1 to 65535, such as {default}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(said)))
        except OSError as error:
            raise SystemExit(
                f"port {said} of {HOST} cannot be used ({error.strerror}): end what uses it, "
                f"or name another: make dev {variable}={int(said) % 65535 + 1}"
            ) from error
    return int(said)


def list_services(settings: Settings) -> list[Service]:
    """Dagster's UI, the daemon that runs sensors and queued runs, the gallery, MLflow's UI where its store is here."""
    dagster = f"http://{HOST}:{port('DAGSTER_PORT')}"
    gallery = f"http://{HOST}:{port('GALLERY_PORT')}"
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    webserver = [str(BIN / "dagster-webserver"), "-h", HOST, "-p", dagster.rpartition(":")[2], *workspace]
    services = [
        Service("dagster", webserver, dagster, f"{dagster}/server_info"),
        Service("daemon", [str(BIN / "dagster-daemon"), "run", *workspace]),
        Service("gallery", [*GALLERY, "--port", gallery.rpartition(":")[2]], gallery, f"{gallery}/health"),
    ]
    if settings.tracking_uri.startswith(("http:", "https:")):
        return services
    mlflow = f"http://{HOST}:{port('MLFLOW_PORT')}"
    server = [str(BIN / "mlflow"), "server", "--host", HOST, "--port", mlflow.rpartition(":")[2], "--workers", "1"]
    store = ["--backend-store-uri", settings.tracking_uri]
    artifacts = ["--artifacts-destination", settings.artifacts]
    return [*services, Service("mlflow", [*server, *store, *artifacts], mlflow, f"{mlflow}/health")]


def start(service: Service, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the service, its lines forwarded under its name. In a session of its own: Ctrl-C reaches this program."""
    process = subprocess.Popen(
        service.command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def forward() -> None:
        for line in process.stdout or ():
            print(f"{service.name:<8}| {line}", end="", flush=True)

    threading.Thread(target=forward, daemon=True).start()
    return process


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def family(processes: Sequence[subprocess.Popen[str]]) -> list[psutil.Process]:
    """Everything that the services started and that still runs, also below a service that died."""
    sessions = {process.pid for process in processes}
    members: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile, or is not ours
            if os.getsid(process.pid) in sessions:
                members |= {process, *process.children(recursive=True)}  # Horovod's ranks have sessions of their own
    return list(members)


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End the services with their code servers, runs, Spark and Horovod's ranks."""
    running = family(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        running = psutil.wait_procs(running, timeout=END_SECONDS)[1]


def keep_running(services: Sequence[Service], processes: Sequence[subprocess.Popen[str]], stop: threading.Event) -> int:
    """Wait until asked to stop (0) or until something goes wrong (1), and say when the UIs answer."""
    started, waiting = time.monotonic(), [service for service in services if service.url]
    while not stop.wait(1):
        for service, process in zip(services, processes, strict=True):
            if process.poll() is not None:
                said = f"{service.name} ended with code {process.returncode}: ending the others"
                print(emphasized(said, "bad", sys.stderr), AFTER_FAILURE, sep="\n", file=sys.stderr)
                return 1
        if waiting and time.monotonic() - started > START_SECONDS:
            said = f"{waiting[0].name} does not answer after {START_SECONDS} s"
            print(emphasized(said, "bad", sys.stderr), AFTER_FAILURE, sep="\n", file=sys.stderr)
            return 1
        if waiting and all(answers(service.health) for service in waiting):
            lines = [f"  {service.name:<8} {emphasized(service.url, 'strong')}" for service in waiting]
            title = emphasized("Open in a browser (Ctrl-C here ends everything):", "strong")
            print("\n".join(["", title, *lines, ""]), flush=True)
            waiting = []
    return 0


def main() -> int:
    """Start everything, forward what it says, end everything."""
    settings = prepared_home()
    services = list_services(settings)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(settings.dagster_home),
        "IMAGE_ASSETS_HOME": str(settings.home),
        "IMAGE_ASSETS_LANDING": str(settings.landing),
        # Seven more processes of 240 MB, for work that only MLflow's language-model features ask for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
    }
    with DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        end_lost_runs(instance)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    processes: list[subprocess.Popen[str]] = []
    try:
        for service in services:
            processes.append(start(service, environment))
        return keep_running(services, processes, stop)
    finally:
        end(processes)


if __name__ == "__main__":
    sys.exit(main())
