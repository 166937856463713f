"""Runs that sensors request are executed in the run worker; without a free one, in a process of their own."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from resources.run_launcher import LAUNCHED_BY, MACHINE, RUN_BY, SENSOR_TAG, SOCKET_FILE, connected, receive, send
from scripts.home import DAGSTER_SETTINGS
from scripts.runs import end_lost_runs
from tests.support import worker_jobs
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120
PROGRAM = """
import sys
from pathlib import Path
from scripts.run_worker import serve
import worker_jobs
print(serve(Path(sys.argv[1]), limit_bytes=int(sys.argv[2]), runs=int(sys.argv[3])), flush=True)
"""
COMMAND = """
import dagster as dg
from scripts.runs import process_tags
from worker_jobs import small_job
config = {"ops": {"work": {"config": {"seconds": 600.0}}}}
with dg.DagsterInstance.get() as instance:
    small_job.execute_in_process(config, instance, tags=process_tags(), raise_on_error=False)
"""
BY_SENSOR = {SENSOR_TAG: "new_images"}
NO_WORKER = "requires a workspace"  # what Dagster's own launcher says here, where no code server runs


class Home:
    """A Dagster instance with our launcher, and a run worker."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dagster_home = folder / "dagster"
        self.dagster_home.mkdir(parents=True)
        shutil.copy(DAGSTER_SETTINGS, self.dagster_home / "dagster.yaml")
        self.module = folder / "worker_jobs.py"  # a copy, which tests may change
        shutil.copy(worker_jobs.__file__, self.module)
        self.processes = folder / "processes"
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PROCESSES", str(self.processes))
        monkeypatch.delitem(sys.modules, "worker_jobs", raising=False)
        self.instance = dg.DagsterInstance.from_config(str(self.dagster_home))
        self.process: subprocess.Popen[str] | None = None

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a process that the fixture kills at the end."""
        environment = os.environ | {
            "DAGSTER_HOME": str(self.dagster_home),
            "PYTHONPATH": f"{self.module.parent}{os.pathsep}{ROOT}",
        }
        command = [sys.executable, "-c", program, *arguments]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        return self.process

    def start_worker(self, *, limit_bytes: int = 2**40, runs: int = 100) -> subprocess.Popen[str]:
        worker = self.start(PROGRAM, str(self.dagster_home), str(limit_bytes), str(runs))
        assert worker.stdout
        assert "ready" in worker.stdout.readline()
        return worker

    def reason(self) -> str:
        """What the worker said when it ended."""
        assert self.process
        assert self.process.stdout
        output = self.process.stdout.read()  # including what was read ahead with the first line
        assert self.process.wait(timeout=120) == 0
        return output.strip().splitlines()[-1]

    def launch(self, tags: dict[str, str] = BY_SENSOR, **config: object) -> str:
        import worker_jobs  # pyright: ignore[reportMissingImports] - the copy, whose folder is on the path

        job = dg.reconstructable(worker_jobs.small_job)
        run = self.instance.create_run_for_job(
            job.get_definition(),
            run_config={"ops": {"work": {"config": config}}},
            tags=tags,
            job_code_origin=job.get_python_origin(),
        )
        self.instance.launch_run(run.run_id, workspace=None)  # pyright: ignore[reportArgumentType]
        return run.run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run

    def finished(self, run_id: str) -> dg.DagsterRunStatus:
        wait_until(lambda: self.run(run_id).is_finished, PATIENCE_SECONDS)
        return self.run(run_id).status

    def executed_by(self) -> list[int]:
        return [int(line) for line in self.processes.read_text().split()] if self.processes.exists() else []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    home = Home(tmp_path, monkeypatch)
    yield home
    if home.process and home.process.poll() is None:
        home.process.kill()
        home.process.wait()
    home.instance.dispose()


def test_runs_of_sensors_are_executed_one_after_the_other_in_the_same_process(home: Home) -> None:
    worker = home.start_worker()
    assert stat.S_IMODE((home.dagster_home / SOCKET_FILE).stat().st_mode) == 0o600
    for _ in range(2):
        run_id = home.launch()
        assert home.finished(run_id) is dg.DagsterRunStatus.SUCCESS
        assert str(worker.pid) in home.run(run_id).tags[RUN_BY]
        wait_until(lambda: is_free(home), PATIENCE_SECONDS)
    assert home.executed_by() == [worker.pid, worker.pid]
    worker.send_signal(signal.SIGTERM)  # as `make dev` does when it stops
    assert worker.wait(20) == 0


def is_free(home: Home) -> bool:
    """Whether the worker would take another run; it is not confirmed, so it does not start."""
    with connected(home.dagster_home) as connection:
        send(connection, {"run": "none"})
        return bool(receive(connection))


def test_other_runs_and_runs_without_a_worker_go_to_dagsters_launcher(home: Home) -> None:
    with pytest.raises(dg.DagsterInvariantViolationError, match=NO_WORKER):
        home.launch()
    home.start_worker()
    with pytest.raises(dg.DagsterInvariantViolationError, match=NO_WORKER):
        home.launch(tags={RUN_BY: "a re-execution has the tags of its parent"})
    runs = home.instance.get_runs()
    assert [run.tags.get(RUN_BY) for run in runs] == ["", None]
    assert {run.tags.get(MACHINE) for run in runs} == {socket.gethostname()}
    assert home.executed_by() == []


def test_a_busy_worker_takes_no_run_and_a_terminated_run_is_canceled(home: Home) -> None:
    home.start_worker()
    run_id = home.launch(seconds=600.0)
    wait_until(home.executed_by, PATIENCE_SECONDS)
    with pytest.raises(dg.DagsterInvariantViolationError, match=NO_WORKER):
        home.launch()
    assert end_lost_runs(home.instance) == []
    assert home.instance.run_launcher.terminate(run_id)
    assert home.finished(run_id) is dg.DagsterRunStatus.CANCELED
    assert home.reason() == f"run {run_id} ended as CANCELED"
    assert not home.instance.run_launcher.terminate(run_id)


def test_a_run_of_a_command_is_canceled_by_interrupting_its_process(home: Home) -> None:
    command = home.start(COMMAND)
    wait_until(home.executed_by, PATIENCE_SECONDS)
    (run,) = home.instance.get_runs()
    assert home.instance.run_launcher.terminate(run.run_id)
    assert command.wait(PATIENCE_SECONDS) == 0
    assert home.run(run.run_id).status is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize(
    "tags",
    [
        {RUN_BY: json.dumps(["another", 1, 0.0])},
        {RUN_BY: json.dumps(["another", 1, 0.0]), **BY_SENSOR},
        {MACHINE: "another", LAUNCHED_BY: json.dumps({"host": "localhost", "socket": "/nowhere"})},
    ],
    ids=["command", "worker", "code server"],
)
def test_a_run_of_another_machine_can_only_be_terminated_there(home: Home, tags: dict[str, str]) -> None:
    run_id = home.instance.create_run_for_job(
        worker_jobs.small_job, tags=tags, status=dg.DagsterRunStatus.STARTED
    ).run_id
    assert not home.instance.run_launcher.terminate(run_id)
    assert home.run(run_id).status is dg.DagsterRunStatus.STARTED, "otherwise, its pools would be released"
    (event,) = home.instance.all_logs(run_id)
    assert event.message == "Not terminated: only the UI on another can do that."


def test_another_process_takes_over_after_a_failed_run(home: Home) -> None:
    home.start_worker()
    run_id = home.launch(fails=True)
    assert home.finished(run_id) is dg.DagsterRunStatus.FAILURE
    assert home.reason() == f"run {run_id} ended as FAILURE"


def test_another_process_takes_over_after_so_many_runs(home: Home) -> None:
    home.start_worker(runs=1)
    assert home.finished(home.launch()) is dg.DagsterRunStatus.SUCCESS
    assert home.reason() == "1 runs are done"


def test_a_process_above_the_memory_limit_ends_while_it_is_idle(home: Home) -> None:
    home.start_worker(limit_bytes=1024 * 1024)
    assert "MiB of memory in use, the limit is 1 MiB" in home.reason()


def test_changed_code_is_never_executed_as_it_was(home: Home) -> None:
    home.start_worker()
    home.module.write_text(home.module.read_text() + "\n")
    with pytest.raises(dg.DagsterInvariantViolationError, match=NO_WORKER):
        home.launch()
    assert home.reason() == f"{home.module} has changed"


def test_a_run_whose_worker_was_killed_is_lost(home: Home) -> None:
    worker = home.start_worker()
    run_id = home.launch(seconds=600.0)
    wait_until(home.executed_by, PATIENCE_SECONDS)
    worker.kill()
    worker.wait()
    assert not home.instance.run_launcher.terminate(run_id)
    assert end_lost_runs(home.instance) == [run_id]
    assert home.run(run_id).status is dg.DagsterRunStatus.FAILURE
    with pytest.raises(dg.DagsterInvariantViolationError, match=NO_WORKER):  # its socket is still there
        home.launch()


def test_a_home_with_a_long_path_has_a_worker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / ("long" * 40), monkeypatch)
    worker = home.start_worker()
    assert home.finished(home.launch()) is dg.DagsterRunStatus.SUCCESS
    assert home.executed_by() == [worker.pid]
    worker.kill()
    worker.wait()
    home.instance.dispose()
