"""What matters stands out on a terminal; a command that cannot go on says what failed and what to do."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.terminal import DISK, MLFLOW, emphasized, in_short, remedy, to_end

ROOT = Path(__file__).parents[2]


def ended(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of this project that is run in an environment."""
    environment = {**os.environ, "IMAGE_ASSETS_LANDING": "", **variables}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command", ["scripts.demo", "scripts.dev", "scripts.checks check-data", "scripts.checks audit", "scripts.reference"]
)
def test_a_wrong_setting_is_named_with_what_is_expected(command: str, tmp_path: Path) -> None:
    answer = ended(*command.split(), IMAGE_ASSETS_HOME=str(tmp_path), IMAGE_ASSETS_PROCESSES="many")
    assert answer.returncode == 1
    assert answer.stderr == "ValueError: IMAGE_ASSETS_PROCESSES is 'many': expected a number from 1, such as 2\n"


def test_a_home_that_cannot_be_made_is_named_with_the_variable_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = ended("scripts.checks", "audit", IMAGE_ASSETS_HOME=str(tmp_path / "file" / "home"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("OSError: the home folder ")
    assert answer.stderr.endswith("name another one by IMAGE_ASSETS_HOME\n")


def test_no_landing_folder_and_an_empty_one_say_what_to_put_there(tmp_path: Path) -> None:
    variables = {"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "IMAGE_ASSETS_BACKBONE": "none"}
    answer = ended("scripts.demo", **variables, IMAGE_ASSETS_LANDING=str(tmp_path / "photographs"))
    assert "does not exist: make it, with one sub-folder of photographs" in answer.stderr
    (tmp_path / "photographs").mkdir()
    answer = ended("scripts.demo", **variables, IMAGE_ASSETS_LANDING=str(tmp_path / "photographs"))
    assert "holds no image file: expected files ending in" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.returncode == 1


def test_a_failure_that_only_its_traceback_explains_has_one_and_names_the_doctor(tmp_path: Path) -> None:
    program = "from scripts.terminal import end_with_what_to_do; end_with_what_to_do(); int('x')"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" in answer.stderr
    assert answer.stderr.endswith(
        "What to do: run `make doctor`: it tries each part of the set-up and says what to do about what fails\n"
    )


@pytest.mark.parametrize("interrupt", ["KeyboardInterrupt()", "dg.DagsterExecutionInterruptedError()"])
def test_who_interrupts_a_command_sees_no_traceback(interrupt: str) -> None:
    program = f"import dagster as dg; from scripts.terminal import *; end_with_what_to_do(); raise {interrupt}"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stderr == "\nInterrupted. The same command again goes on from there.\n"
    assert answer.returncode != 0


def test_the_first_cause_that_is_known_decides() -> None:
    error = RuntimeError("the step failed\nwith details")
    error.__cause__ = OSError(28, "No space left on device", "/home/x")
    assert to_end(error) == f"OSError: [Errno 28] No space left on device: '/home/x'\nWhat to do: {DISK}"
    assert in_short(error) == "RuntimeError: the step failed"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("API request to http://127.0.0.1:9/api/2.0/mlflow/x failed", MLFLOW),
        ("sqlite3.OperationalError: database or disk is full", DISK),
        ("[JAVA_GATEWAY_EXITED] Java gateway process exited", "Java 17 or 21"),
        ("Detected out-of-date database schema (found version x, but expected y)", "IMAGE_ASSETS_HOME"),
        ("connection to server at 127.0.0.1, port 5432 failed (psycopg2.OperationalError)", "PostgreSQL"),
        ("EndpointConnectionError: Could not connect to the endpoint URL", "AWS_ENDPOINT_URL"),
        ("All masters are unresponsive! Giving up.", "IMAGE_ASSETS_SPARK_MASTER"),
        ("RankKilled: a rank was killed from outside", "IMAGE_ASSETS_PROCESSES"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
    ],
)
def test_what_libraries_say_leads_to_what_to_do(said: str, words: str) -> None:
    assert words in (remedy(said) or "")


def test_what_is_not_known_has_no_remedy() -> None:
    assert remedy("KeyError: 'x'") is None


class Terminal(io.StringIO):
    """A stream that says that a person looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("plain_environment")
def test_a_terminal_gets_weight_and_color() -> None:
    assert emphasized("failed", "bad", Terminal()) == "\033[1;31mfailed\033[0m"


@pytest.mark.usefixtures("plain_environment")
def test_a_pipe_gets_plain_text() -> None:
    assert emphasized("failed", "bad", io.StringIO()) == "failed"


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize(("variable", "said"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_color_gets_none(variable: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, said)
    assert emphasized("failed", "bad", Terminal()) == "failed"
