"""Runs the services of `make dev` on a home, and finds the runs that its sensors request."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from resources.run_launcher import SENSOR_TAG
from resources.settings import Settings
from scripts.dev import list_services, start, stop
from sensors.attempts import RUN_KEY_TAG

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 600


def free_port() -> str:
    """Return an unused port that the system gives to no other program, unlike those of `bind` to port 0."""
    for number in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return str(number)
    pytest.fail("no port from 20000 to 32000 is free")


@contextmanager
def served(settings: Settings, log: Path, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run Dagster's UI and daemon, and MLflow unless it is elsewhere; their output is appended to the log."""
    environment = {
        **os.environ,
        "IMAGE_ASSETS_HOME": str(settings.home),
        "IMAGE_ASSETS_SPARK_MASTER": "local[2]",
        "DAGSTER_PORT": free_port(),
        "MLFLOW_PORT": free_port(),
        "GALLERY_PORT": free_port(),
        **(variables or {}),
    }
    command = [sys.executable, "-m", "scripts", "dev"]
    with log.open("a") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            ended = process.poll()
            process.terminate()
            process.wait(60)
    if ended is not None:
        pytest.fail(f"the services ended with code {ended}\n{log.read_text()[-3000:]}")


@contextmanager
def mlflow_server(settings: Settings, port: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a separate MLflow server for the home's registry."""
    monkeypatch.setenv("MLFLOW_PORT", port)
    monkeypatch.setenv("DAGSTER_PORT", free_port())
    monkeypatch.setenv("GALLERY_PORT", free_port())
    (server,) = [service for service in list_services(settings, settings.home) if service.name == "mlflow"]
    process = start(server, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        yield
    finally:
        stop([process])


def wait_for(condition: Callable[[], object], what: str, log: Path) -> None:
    """Wait until the condition holds; on timeout, fail with the end of the log."""
    since = time.monotonic()
    while not condition():
        if time.monotonic() - since > PATIENCE_SECONDS:
            pytest.fail(f"{what}: not within {PATIENCE_SECONDS} s\n{log.read_text()[-3000:]}")
        time.sleep(1)


def requested_runs(instance: dg.DagsterInstance, sensor: str) -> list[dg.DagsterRun]:
    """Return the runs that a sensor requested, oldest first; their keys are unique and none failed."""
    runs = instance.get_runs(dg.RunsFilter(tags={SENSOR_TAG: sensor}))[::-1]
    assert len({run.tags[RUN_KEY_TAG] for run in runs}) == len(runs)
    assert dg.DagsterRunStatus.FAILURE not in {run.status for run in runs}
    return runs
