import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import dagster as dg
import psutil
import pytest
from mlflow import MlflowClient

from resources.run_launcher import RUN_BY
from resources.settings import read_settings
from resources.web_protection import accepted_from_other_sites
from scripts.dev import (
    CODE_SOCKET,
    FORMS,
    HOST,
    PORTS,
    Service,
    is_up,
    list_services,
    port,
    run_services,
    start,
    stop,
    supervise,
    to_environment,
)
from tests.support.images import put
from tests.support.receivers import Quiet, serving
from tests.support.served import ROOT, free_port, mlflow_server, wait_for
from tests.support.waiting import wait_until
from tests.support.worker_jobs import small_job

SLEEP = "import time; time.sleep(600)"
# A service with a child in its own session, like Horovod's ranks.
WITH_RANK = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
    "print(child.pid, file=open(sys.argv[1], 'w'), flush=True)\n"
    "time.sleep(600)"
)
# What a command and its services make of the settings.
SETTINGS = (
    "import sys; from pathlib import Path; from resources.settings import read_settings\n"
    "Path(sys.argv[1]).write_text(f'{Path.cwd()} {read_settings()}')"
)
# A command that starts MLflow and is killed once it is up.
KILLED = """
import os, signal, time
from resources.settings import read_settings
from scripts.dev import is_up, list_services, start
settings = read_settings()
mlflow = list_services(settings, settings.home)[-1]
start(mlflow, dict(os.environ))
while not is_up(mlflow.health):
    time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_port_in_use_is_rejected_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        monkeypatch.setenv("DAGSTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(SystemExit, match=r"is not available .* another port: DAGSTER_PORT=\d+ make dev"):
            port("DAGSTER_PORT")


@pytest.mark.parametrize("value", ["x", "0", "70000", "-1"])
def test_an_invalid_port_is_rejected(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", value)
    with pytest.raises(SystemExit, match="expected a port from 1 to 65535"):
        port("MLFLOW_PORT")


def test_stopping_reaches_what_the_services_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    process = start(Service("one", [sys.executable, "-c", WITH_RANK, str(file)]), dict(os.environ))
    for _ in range(200):
        if file.exists() and file.read_text():
            break
        time.sleep(0.05)
    rank = psutil.Process(int(file.read_text()))
    stop([process])
    assert process.poll() is not None
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_services_end_with_a_command_that_is_killed(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    ports = {name: free_port() for name in PORTS}
    variables = {
        **os.environ,
        **ports,
        "IMAGE_ASSETS_HOME": str(tmp_path),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=variables, check=False)
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not is_up(f"http://{HOST}:{ports['MLFLOW_PORT']}/health"), 60)


def test_services_take_relative_settings_as_the_command_does_and_import_nothing_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "resources.py", b"raise ImportError('a file of another project')")
    for name in ("CACHES", "HOME", "LANDING", "STORAGE"):
        monkeypatch.setenv(f"IMAGE_ASSETS_{name}", name.lower())
    settings, found = read_settings(), tmp_path / "found"
    process = start(Service("one", [sys.executable, "-c", SETTINGS, str(found)]), to_environment(settings))
    assert process.wait(60) == 0
    assert found.read_text() == f"{tmp_path} {settings}"


def test_a_proxy_for_other_machines_is_not_asked_for_a_page_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:{free_port()}")  # nothing responds there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Quiet((HOST, 0), SimpleHTTPRequestHandler) as server, serving(server):
        assert is_up(f"http://{HOST}:{server.server_port}")
        assert not is_up(f"http://{HOST}:{server.server_port}/nothing")


def test_a_service_that_exits_is_named_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    services = [Service("healthy", [sys.executable, "-c", SLEEP]), Service("broken", [sys.executable, "-c", "exit(3)"])]
    processes = [start(service, dict(os.environ)) for service in services]
    try:
        assert supervise(services, processes, threading.Event(), dict(os.environ)) == 1
    finally:
        stop(processes)
    assert "broken exited with code 3; stopping the others" in capsys.readouterr().err


def test_a_service_that_is_restarted_gets_another_process_and_its_runs_are_ended(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        gone = json.dumps([socket.gethostname(), 2**22 + 1, 0.0])  # more than the largest process id
        lost = instance.create_run_for_job(small_job, tags={RUN_BY: gone}, status=dg.DagsterRunStatus.STARTED)
    starts = tmp_path / "starts"
    program = f"print(1, file=open({str(starts)!r}, 'a'))"
    services = [Service("worker", [sys.executable, "-c", program], restarted=True)]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path)}
    processes, stopped = [start(services[0], environment)], threading.Event()
    ending = threading.Thread(target=lambda: (wait_for(lambda: has_lines(starts, 3), "starts", starts), stopped.set()))
    ending.start()
    assert supervise(services, processes, stopped, environment, restart_seconds=0) == 0
    ending.join()
    stop(processes)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = instance.get_run_by_id(lost.run_id)
        assert run
        assert run.status is dg.DagsterRunStatus.FAILURE


def has_lines(file: Path, number: int) -> bool:
    return file.exists() and len(file.read_text().splitlines()) >= number


def test_a_page_that_accepts_requests_of_other_sites_is_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://{HOST}:{free_port()}"
    command = [sys.executable, "-m", "http.server", "--bind", HOST, url.rpartition(":")[2]]
    services = [Service("gallery", command, url, url)]
    processes = [start(service, dict(os.environ)) for service in services]
    try:
        assert supervise(services, processes, threading.Event(), dict(os.environ)) == 1
    finally:
        stop(processes)
    written = capsys.readouterr()
    assert (
        "gallery accepts requests under any host name and forms submitted by other sites; stopping all" in written.err
    )
    assert "Open in a browser" not in written.out


def test_a_service_that_is_too_busy_for_its_first_pages_is_asked_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.web_protection.PROBE_SECONDS", 0.5)
    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                asked.append(self.path)
                time.sleep(2 if len(asked) == 1 else 0)
            if len(asked) == 4:  # all three probes after the one that got no answer
                stopped.set()
            self.send_response(200 if self.path == "/health" else 403)
            self.end_headers()

        do_POST = do_GET

    stopped = threading.Event()
    with Quiet((HOST, 0), Busy) as server, serving(server):
        url = f"http://{HOST}:{server.server_port}"
        services = [Service("gallery", [sys.executable, "-c", SLEEP], url, f"{url}/health")]
        processes = [start(service, dict(os.environ)) for service in services]
        try:
            assert supervise(services, processes, stopped, dict(os.environ)) == 0
        finally:
            stop(processes)
    assert len(asked) == 4
    assert "Open in a browser" in capsys.readouterr().out


def test_mlflow_accepts_its_client_but_no_other_host_names_and_no_requests_of_other_sites(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, number = read_settings({"IMAGE_ASSETS_HOME": str(tmp_path)}), free_port()
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    put(tmp_path, "scripts/__init__.py", b"raise ImportError('a file of another project')")
    monkeypatch.chdir(tmp_path)
    with mlflow_server(settings, number, monkeypatch):
        url = f"http://{HOST}:{number}"
        wait_for(lambda: is_up(f"{url}/health"), "MLflow", empty_store)
        assert accepted_from_other_sites(url, FORMS["mlflow"]) == []
        # MLflow itself accepts all private addresses, and pages of other ports.
        for host in (f"192.168.0.1:{number}", f"0.0.0.0:{number}", "localhost.evil.example"):
            request = urllib.request.Request(url, headers={"Host": host})
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request, timeout=20)
        for path in (FORMS["mlflow"], "/graphql", "/v1/traces"):
            for headers in ({"Origin": f"http://{HOST}:1"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}):
                request = urllib.request.Request(f"{url}{path}", b"{}", headers)
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    urllib.request.urlopen(request, timeout=20)
        assert MlflowClient(url).create_experiment("of a program")


def test_the_store_of_a_new_home_is_complete_before_anything_opens_it(tmp_path: Path, empty_store: Path) -> None:
    settings = read_settings({"IMAGE_ASSETS_HOME": str(tmp_path / "home")})
    found = tmp_path / "copy.db"
    program = f"import shutil; shutil.copy({settings.tracking_uri.removeprefix('sqlite:///')!r}, {str(found)!r})"
    code, mlflow = (Service(name, [sys.executable, "-c", of]) for name, of in (("code", SLEEP), ("mlflow", program)))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / CODE_SOCKET))
        listening.listen()
        assert run_services(code, [mlflow], tmp_path, threading.Event(), settings) == 1  # MLflow has ended
    assert migrations_of(found) == migrations_of(empty_store)


def migrations_of(store: Path) -> list[tuple[str]]:
    with contextlib.closing(sqlite3.connect(store)) as opened:
        return opened.execute("SELECT version_num FROM alembic_version").fetchall()


def test_stopping_is_not_a_failure() -> None:
    stopped = threading.Event()
    stopped.set()
    assert supervise([], [], stopped, {}) == 0


@pytest.mark.parametrize("lost", [[], ["image_splits"]])
def test_the_gallery_is_served_beside_dagster_even_if_a_table_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str]
) -> None:
    for table in lost:
        put(tmp_path, f"tables/.made/{table}", b"")
    with socket.socket() as free:
        free.bind((HOST, 0))
        monkeypatch.setenv("GALLERY_PORT", str(free.getsockname()[1]))
    for variable in ("DAGSTER_PORT", "MLFLOW_PORT"):
        monkeypatch.setenv(variable, os.environ["GALLERY_PORT"])  # not started here
    services = {
        service.name: service
        for service in list_services(read_settings({"IMAGE_ASSETS_HOME": str(tmp_path)}), tmp_path)
    }
    gallery = services["gallery"]
    process = start(gallery, {**os.environ, "IMAGE_ASSETS_HOME": str(tmp_path)})
    try:
        deadline = time.monotonic() + 120
        while not is_up(gallery.health):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert is_up(gallery.url) == (not lost)
    finally:
        stop([process])
    assert process.poll() is not None
