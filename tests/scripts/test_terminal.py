"""Text is styled on terminals only, and a command that fails prints why and what to do."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.terminal import DISK, MLFLOW, explanation, first_line, printable, remedy, styled, table

ROOT = Path(__file__).parents[2]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The result of a command with these settings."""
    environment = {**os.environ, "IMAGE_ASSETS_LANDING": "", **variables}
    return subprocess.run(
        [sys.executable, "-m", "scripts", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["demo", "dev", "check-data", "audit", "docs", "home"])
def test_an_invalid_setting_is_named_with_what_is_expected(command: str, tmp_path: Path) -> None:
    answer = run(command, IMAGE_ASSETS_HOME=str(tmp_path), IMAGE_ASSETS_PROCESSES="many")
    assert answer.returncode == 1
    assert answer.stderr == "ValueError: IMAGE_ASSETS_PROCESSES is 'many': expected a number from 1, such as 2\n"


def test_a_home_that_cannot_be_created_is_named_with_the_variable_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = run("audit", IMAGE_ASSETS_HOME=str(tmp_path / "file" / "home"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("OSError: Cannot write to the home folder ")
    assert answer.stderr.endswith("or set IMAGE_ASSETS_HOME to another one.\n")


def test_a_missing_or_empty_landing_folder_is_an_error_that_says_what_to_put_there(tmp_path: Path) -> None:
    variables = {"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "IMAGE_ASSETS_BACKBONE": "none"}
    answer = run("demo", **variables, IMAGE_ASSETS_LANDING=str(tmp_path / "photographs"))
    assert "does not exist. Create it, with one subfolder of photos" in answer.stderr
    (tmp_path / "photographs").mkdir()
    answer = run("demo", **variables, IMAGE_ASSETS_LANDING=str(tmp_path / "photographs"))
    assert "contains no image files. Expected files ending in" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.returncode == 1


def test_an_unknown_error_has_a_traceback_and_points_to_the_doctor(tmp_path: Path) -> None:
    program = "from scripts.terminal import explain_errors; explain_errors(); int('x')"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" in answer.stderr
    assert answer.stderr.endswith(
        "What to do: Run `make doctor`: it tests each part of the setup and tells you how to fix what fails.\n"
    )


@pytest.mark.parametrize("interrupt", ["KeyboardInterrupt()", "dg.DagsterExecutionInterruptedError()"])
def test_interrupting_a_command_prints_no_traceback(interrupt: str) -> None:
    program = f"import dagster as dg; from scripts.terminal import *; explain_errors(); raise {interrupt}"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stderr == "\nInterrupted. Run the same command again to continue.\n"
    assert answer.returncode != 0


def test_a_known_cause_provides_the_remedy() -> None:
    error = RuntimeError("the step failed\nwith details")
    error.__cause__ = OSError(28, "No space left on device", "/home/x")
    assert explanation(error) == f"OSError: [Errno 28] No space left on device: '/home/x'\nWhat to do: {DISK}"
    assert first_line(error) == "RuntimeError: the step failed"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("API request to http://127.0.0.1:9/api/2.0/mlflow/x failed", MLFLOW),
        ("sqlite3.OperationalError: database or disk is full", DISK),
        ("[JAVA_GATEWAY_EXITED] Java gateway process exited", "Java 17 or 21"),
        ("Detected out-of-date database schema (found version x, but expected y)", "IMAGE_ASSETS_HOME"),
        ("connection to server at 127.0.0.1, port 5432 failed (psycopg2.OperationalError)", "PostgreSQL"),
        ("EndpointConnectionError: Could not connect to the endpoint URL", "AWS_ENDPOINT_URL"),
        ("All masters are unresponsive! Giving up.", "IMAGE_ASSETS_SPARK_MASTER"),
        ("RankKilled: A rank was killed from outside", "IMAGE_ASSETS_PROCESSES"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
        ("(sqlite3.DatabaseError) file is not a database", "backup"),
        ("(sqlite3.DatabaseError) database disk image is malformed", "backup"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "writable"),
        ("Kernel error: Json error: EOF while parsing", "repair_tables"),
        ("py4j.protocol.Py4JNetworkError: Answer from Java side is empty", "Java process died"),
        (
            'ConnectionRefusedError: [Errno 111] Connection refused\n  File "…/py4j/clientserver.py"',
            "Java process died",
        ),
    ],
)
def test_messages_of_libraries_have_a_remedy(message: str, words: str) -> None:
    assert words in (remedy(message) or "")


def test_a_refused_connection_to_anything_but_java_is_not_blamed_on_java() -> None:
    assert remedy("ConnectionRefusedError: [Errno 111] Connection refused (/x/http/client.py)") is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"IMAGE_ASSETS_LANDING": "s3://me:secret@bucket/photos"}, "Accounts belong in MLFLOW_TRACKING_USERNAME"),
        ({"IMAGE_ASSETS_DAGSTER_DATABASE": "mysql://host/dagster"}, "expected postgresql+psycopg2://"),
        ({"IMAGE_ASSETS_STORAGE": "s3://bucket", "AWS_ENDPOINT_URL": "http://host"}, "set AWS_ALLOW_HTTP=true"),
    ],
)
def test_a_message_of_this_project_is_not_taken_for_one_of_a_library(
    variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    answer = run("home", IMAGE_ASSETS_HOME=str(tmp_path), AWS_ALLOW_HTTP="", **variables)
    assert answer.stderr.startswith(f"ValueError: {next(iter(variables))} ")
    assert message in answer.stderr
    assert "What to do" not in answer.stderr


def test_an_unknown_error_has_no_remedy() -> None:
    assert remedy("KeyError: 'x'") is None


HOSTILE = "\x1b]0;owned\x07a\nb\u202e.jpg"  # sets a terminal's title, breaks the line, reverses what follows


def test_names_cannot_control_the_terminal() -> None:
    _, row, other = table("Quarantined files", [(HOSTILE, "empty"), ("c.jpg", "empty")]).splitlines()
    assert row == "  �]0;owned�a b�.jpg  empty"
    assert other.index("empty") == row.index("empty")
    assert first_line(ValueError(HOSTILE)) == "ValueError: �]0;owned�a"


@pytest.mark.parametrize("name", ["گل\u200cها", "👩\u200d🌾"])
def test_names_keep_the_characters_that_join_letters_and_emoji(name: str) -> None:
    assert printable(name) == name


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("plain_environment")
def test_a_terminal_gets_bold_and_color() -> None:
    assert styled("failed", "bad", Terminal()) == "\033[1;31mfailed\033[0m"


@pytest.mark.usefixtures("plain_environment")
def test_styled_cells_keep_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    _, first, second = table("Checks", [("ERROR", "a"), ("passed", "b")], {"ERROR": "bad"}).splitlines()
    assert first == "  \033[1;31mERROR \033[0m  a"
    assert second == "  passed  b"


@pytest.mark.usefixtures("plain_environment")
def test_a_pipe_gets_plain_text() -> None:
    assert styled("failed", "bad", io.StringIO()) == "failed"


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_color_can_be_disabled(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert styled("failed", "bad", Terminal()) == "failed"
