import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from resources.delta.external_table import ExternalTable
from resources.run_launcher import LAUNCHED_BY, MACHINE, RUN_BY, process_identity
from scripts.cluster import free_port
from scripts.runs import end_lost_runs, print_failures, process_tags, terminal_logger
from tests.support.images import put


@dg.job
def empty() -> None:
    """A job without steps."""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def started(instance: dg.DagsterInstance, path: Path, tags: dict[str, str]) -> str:
    tags = {LAUNCHED_BY: json.dumps({"host": "localhost", "socket": str(path)}), **tags}
    return instance.create_run_for_job(empty, status=dg.DagsterRunStatus.STARTED, tags=tags).run_id


@pytest.mark.parametrize("tags", [{MACHINE: socket.gethostname()}, {}], ids=["this release", "an earlier one"])
def test_a_run_whose_code_server_is_gone_is_recorded_as_failed(
    instance: dg.DagsterInstance, tmp_path: Path, tags: dict[str, str]
) -> None:
    dagster_run_id = started(instance, tmp_path / "gone", tags)
    assert end_lost_runs(instance) == [dagster_run_id]
    assert instance.get_run_by_id(dagster_run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_run_whose_code_server_is_up_continues(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        started(instance, tmp_path / "s", {MACHINE: socket.gethostname()})
        assert end_lost_runs(instance) == []


@pytest.mark.parametrize("tags", [{MACHINE: "another"}, {RUN_BY: json.dumps(["another", 2**22 + 1, 0.0])}])
def test_a_run_of_another_machine_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path, tags: dict[str, str]
) -> None:
    started(instance, tmp_path / "gone", tags)
    assert end_lost_runs(instance) == []


def test_a_run_inside_another_program_is_left_alone(instance: dg.DagsterInstance) -> None:
    instance.create_run_for_job(empty, status=dg.DagsterRunStatus.STARTED)
    assert end_lost_runs(instance) == []


@pytest.mark.parametrize(
    "start", [process_identity()[2], psutil.Process().create_time()], ids=["this release", "an earlier one"]
)
def test_a_run_of_a_command_lasts_as_long_as_its_process(instance: dg.DagsterInstance, start: float) -> None:
    here = [socket.gethostname(), os.getpid(), start]
    instance.create_run_for_job(empty, status=dg.DagsterRunStatus.STARTED, tags={RUN_BY: json.dumps(here)})
    assert end_lost_runs(instance) == []
    ended = [*here[:2], start - 1000]  # another process has this id now
    lost = instance.create_run_for_job(empty, status=dg.DagsterRunStatus.STARTED, tags={RUN_BY: json.dumps(ended)})
    assert end_lost_runs(instance) == [lost.run_id]


@pytest.mark.parametrize("seconds", [-3600, 1, 3600])
def test_a_run_of_a_command_goes_on_when_the_clock_is_set(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    instance.create_run_for_job(empty, status=dg.DagsterRunStatus.STARTED, tags=process_tags())
    put(tmp_path, "stat", f"btime {psutil.boot_time() + seconds:.0f}\n".encode())
    (tmp_path / str(os.getpid())).symlink_to("/proc/self")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert end_lost_runs(instance) == []


@dg.op
def ask_java() -> None:
    """Asks a Java process that is dead, as pyspark does."""
    from py4j.clientserver import ClientServer, JavaParameters, PythonParameters

    python = PythonParameters(port=0, daemonize=True, daemonize_connections=True)
    ClientServer(JavaParameters(port=free_port()), python).jvm.System.currentTimeMillis()


@dg.job
def asking() -> None:
    ask_java()


def test_a_run_whose_java_process_died_says_so(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    print_failures(asking.execute_in_process(instance=instance, raise_on_error=False))
    assert "What to do: Spark's Java process died" in capsys.readouterr().err


def test_steps_that_depend_on_a_failed_one_are_counted_in_one_line(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    @dg.op
    def write() -> int:
        raise ValueError("no photos")

    @dg.op
    def follow(number: int) -> int:
        return number

    @dg.job(logger_defs={"console": dg.logger(config_schema={})(terminal_logger)})
    def following() -> None:
        follow.alias("last")(follow(write()))

    loggers = {"loggers": {"console": {}}}
    print_failures(following.execute_in_process(run_config=loggers, instance=instance, raise_on_error=False))
    printed = capsys.readouterr()
    assert "Not executing" not in printed.out
    assert "\n  write: ValueError: no photos\nSteps not executed because of that: 2\n" in printed.err
    assert 'Execution of step "write" failed.' in printed.out


def test_a_failed_run_says_what_this_project_says_about_the_cause(
    instance: dg.DagsterInstance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "labels.parquet"
    damaged.write_bytes(b"PAR1")

    @dg.op
    def read() -> None:
        ExternalTable(source=str(damaged)).read_all()

    @dg.job
    def reading() -> None:
        read()

    print_failures(reading.execute_in_process(instance=instance, raise_on_error=False))
    assert f"read: ValueError: {damaged} cannot be read: Parquet file size is 4 bytes" in capsys.readouterr().err


def test_a_run_that_a_check_stopped_says_what_the_check_found(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    @dg.asset
    def photos() -> None:
        """An asset."""

    @dg.asset_check(asset=photos, blocking=True)
    def enough() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="2 photos: expected 3")

    print_failures(dg.materialize([photos, enough], instance=instance, raise_on_error=False))
    assert "photos_enough: 2 photos: expected 3\n" in capsys.readouterr().err
