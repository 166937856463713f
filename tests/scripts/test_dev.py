import os
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from resources.settings import read_settings
from scripts.dev import HOST, Service, answers, end, keep_running, list_services, port, start

SLEEP = "import time; time.sleep(600)"
# A service with a child in a session of its own, as Horovod's ranks are.
WITH_RANK = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
    "print(child.pid, file=open(sys.argv[1], 'w'), flush=True)\n"
    "time.sleep(600)"
)


def test_a_taken_port_is_refused_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        monkeypatch.setenv("DAGSTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(SystemExit, match=r"cannot be used .* name another: make dev DAGSTER_PORT="):
            port("DAGSTER_PORT")


@pytest.mark.parametrize("said", ["x", "0", "70000", "-1"])
def test_what_is_no_port_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", said)
    with pytest.raises(SystemExit, match="expected a port from 1 to 65535"):
        port("MLFLOW_PORT")


def test_ending_reaches_what_the_services_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    process = start(Service("one", [sys.executable, "-c", WITH_RANK, str(file)]), dict(os.environ))
    for _ in range(200):
        if file.exists() and file.read_text():
            break
        time.sleep(0.05)
    rank = psutil.Process(int(file.read_text()))
    end([process])
    assert process.poll() is not None
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_a_service_that_dies_is_named_and_the_answer_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    services = [Service("well", [sys.executable, "-c", SLEEP]), Service("ill", [sys.executable, "-c", "exit(3)"])]
    processes = [start(service, dict(os.environ)) for service in services]
    try:
        assert keep_running(services, processes, threading.Event()) == 1
    finally:
        end(processes)
    assert "ill ended with code 3: ending the others" in capsys.readouterr().err


def test_being_asked_to_stop_is_no_failure() -> None:
    stop = threading.Event()
    stop.set()
    assert keep_running([], [], stop) == 0


def test_the_gallery_is_served_beside_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        monkeypatch.setenv("GALLERY_PORT", str(free.getsockname()[1]))
    for variable in ("DAGSTER_PORT", "MLFLOW_PORT"):
        monkeypatch.setenv(variable, os.environ["GALLERY_PORT"])  # not started here
    services = {service.name: service for service in list_services(read_settings({"IMAGE_ASSETS_HOME": str(tmp_path)}))}
    gallery = services["gallery"]
    process = start(gallery, {**os.environ, "IMAGE_ASSETS_HOME": str(tmp_path)})
    try:
        deadline = time.monotonic() + 120
        while not answers(gallery.health):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert answers(gallery.url)
    finally:
        end([process])
    assert process.poll() is not None
