import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.doctor import cause

ROOT = Path(__file__).parents[2]


def doctor(*names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.doctor", *names],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_is_well_is_ok_and_the_exit_code_is_0() -> None:
    answer = doctor("python", "delta jars")
    rows = answer.stdout.splitlines()
    assert rows[1].split()[:2] == ["python", "ok"]
    assert rows[2].split()[:3] == ["delta", "jars", "ok"]
    assert answer.returncode == 0


def test_a_failed_part_is_shown_with_its_remedy_beside_the_others() -> None:
    answer = doctor("java", "compiler", JAVA_HOME="/nowhere")
    rows = answer.stdout.splitlines()
    assert rows[1].split()[:2] == ["java", "failed"]
    assert "no java in JAVA_HOME=/nowhere" in rows[1]
    assert "->  install OpenJDK 17 or 21" in rows[1]
    assert rows[2].startswith("compiler")
    assert answer.returncode == 1


def test_an_exception_in_a_check_fails_that_check_only() -> None:
    answer = doctor("home", "java", IMAGE_ASSETS_PROCESSES="many")
    rows = answer.stdout.splitlines()
    assert "ValueError: IMAGE_ASSETS_PROCESSES is 'many'" in rows[1]
    assert rows[2].split()[:2] == ["java", "ok"]
    assert answer.returncode == 1


def test_a_landing_folder_that_was_named_must_be_there(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert doctor("landing", IMAGE_ASSETS_HOME=home, IMAGE_ASSETS_LANDING="").returncode == 0
    assert doctor("landing", IMAGE_ASSETS_HOME=home, IMAGE_ASSETS_LANDING=str(tmp_path / "none")).returncode == 1


def test_alert_rules_need_the_addresses_of_those_who_are_told(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: sure roses, send_to: [oncall]}]")
    known = {"IMAGE_ASSETS_HOME": str(tmp_path), "IMAGE_ASSETS_ALERT_RULES": str(rules)}
    answer = doctor("alerts", **known)
    assert "ValueError: IMAGE_ASSETS_ALERT_ONCALL is not set" in answer.stdout
    assert answer.returncode == 1
    answer = doctor("alerts", **known, IMAGE_ASSETS_ALERT_ONCALL="json://tOps3cret")
    assert answer.stdout.splitlines()[1].endswith("told to oncall")
    assert "tOps3cret" not in answer.stdout
    assert answer.returncode == 0


def test_an_unknown_check_is_refused_with_the_known_ones() -> None:
    answer = doctor("weather")
    assert answer.returncode == 1
    assert "no check named weather: expected some of python, java" in answer.stderr


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Traceback\nValueError: one\nbye\n", "ValueError: one"),
        # A rank's own error says more than the launcher's.
        (
            "[0]<stderr>:ImportError: two\nRuntimeError: some exited with non-zero status\n",
            "[0]<stderr>:ImportError: two",
        ),
        ("Killed\n", "Killed"),
        ("", ""),
    ],
)
def test_the_line_that_tells_most_is_shown(said: str, told: str) -> None:
    assert cause(said) == told
