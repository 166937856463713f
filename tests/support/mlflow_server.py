"""A local MLflow server with accounts, and a proxy to it that can hold a response back."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.receivers import Quiet, serving

ADMINISTRATOR = "administrator"
START_SECONDS = 180
SETTINGS = """
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/accounts.db
admin_username = administrator
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""


def password_of(account: str) -> str:
    return f"{account}-tOps3cret"


def log_in(monkeypatch: pytest.MonkeyPatch, account: str, password: str | None = None) -> None:
    """Use this account from now on."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", account)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or password_of(account))


@dataclass(frozen=True)
class MlflowServer:
    """A running server."""

    url: str
    log: Path

    def create_account(self, account: str, grants: Mapping[tuple[str, str], str]) -> None:
        """Create an account with permissions by (resource type, name)."""
        from mlflow.server.auth.client import AuthServiceClient  # brings the whole server along

        accounts = AuthServiceClient(self.url)
        accounts.create_user(account, password_of(account))
        for (kind, name), permission in grants.items():
            accounts.grant_user_permission(account, kind, name, permission)


@contextmanager
def mlflow_server(folder: Path, empty_store: Path) -> Iterator[MlflowServer]:
    """Run MLflow's server with its basic-auth app; nothing is allowed by default."""
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "basic_auth.ini").write_text(SETTINGS.format(folder=folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password_of(ADMINISTRATOR),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    log = folder / "server.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=lines, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield MlflowServer(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server responds; otherwise fail with its log."""
    since = time.monotonic()
    while time.monotonic() - since < START_SECONDS and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the MLflow server does not answer:\n{log.read_text()}")


@dataclass
class HeldLine:
    """A proxy that forwards one request and holds its response back, to freeze the client at that point."""

    url: str = ""
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def held_after(server: str, path: str, count: int = 1) -> Iterator[HeldLine]:
    """Run a proxy that holds back the response to the count-th modifying request to this path."""
    line, seen = HeldLine(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            connection = HTTPConnection(urlsplit(server).netloc)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if self.command != "GET" and urlsplit(self.path).path.endswith(path):
                seen.append(self.path)
                if len(seen) == count:
                    line.reached.set()
                    line.released.wait(120)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"] or "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = forward

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with Quiet(("127.0.0.1", 0), Handler) as proxy, serving(proxy):
        line.url = f"http://127.0.0.1:{proxy.server_port}"
        yield line
        line.released.set()
