"""The README's commands are there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)))


def test_the_readme_names_the_commands_to_learn() -> None:
    assert {"demo", "dev", "test", "check-data"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_readme_is_one_of_make(command: str) -> None:
    answer = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
