"""The command `image-assets`, run as its users run it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resources.files import s3
from resources.settings import read_settings
from scripts.__main__ import unknown_settings

ROOT = Path(__file__).parents[2]
READ_BY_LIBRARIES = {
    *s3.VARIABLES,
    "AWS_ENDPOINT_URL_SQS",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
}
CALLED_BY_MAKE = re.findall(r"\$\(BIN\)/image-assets ([\w-]+)", (ROOT / "Makefile").read_text())


def image_assets(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The result of the command."""
    command = [sys.executable, "-m", "scripts", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", CALLED_BY_MAKE)
def test_make_calls_commands_that_exist_and_explain_themselves(name: str) -> None:
    process = image_assets(name, "--help")
    assert process.returncode == 0, process.stderr
    assert f"usage: image-assets {name}" in process.stdout
    assert f"    {name}" in image_assets("--help").stdout


def test_an_unknown_command_is_rejected_with_the_existing_ones() -> None:
    process = image_assets("predict")
    assert process.returncode == 2
    assert "'predict' (choose from" in process.stderr


def test_every_setting_is_listed_with_its_default() -> None:
    lines = image_assets("settings").stdout.splitlines()
    (processes,) = [line.split()[:2] for line in lines if "IMAGE_ASSETS_PROCESSES" in line]
    assert processes == ["IMAGE_ASSETS_PROCESSES", "2"]


def test_misspelled_settings_are_named_with_the_nearest_one() -> None:
    names = ["IMAGE_ASSETS_HOMES", "IMAGE_ASSETS_XYZ", "IMAGE_ASSETS_HOME", "IMAGE_ASSETS_ALERT_ONCALL", "HOME"]
    home, other = unknown_settings(names)
    assert home.startswith("IMAGE_ASSETS_HOMES is not a setting and has no effect. Did you mean IMAGE_ASSETS_HOME?")
    assert other.startswith("IMAGE_ASSETS_XYZ is not a setting")


class RecordedVariables(dict[str, str]):
    """Environment variables that record which of them are read."""

    def __init__(self, **variables: str) -> None:
        super().__init__(variables)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The variable's value, as from a dictionary."""
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)


def test_every_variable_that_is_read_is_listed(tmp_path: Path) -> None:
    on_s3 = {"IMAGE_ASSETS_STORAGE": "s3://bucket", "AWS_ENDPOINT_URL": "http://s3:9000", "AWS_ALLOW_HTTP": "true"}
    variables = RecordedVariables(IMAGE_ASSETS_HOME=str(tmp_path), **on_s3)
    read_settings(variables)
    assert {"IMAGE_ASSETS_PROCESSES", "AWS_ALLOW_HTTP", "DAGSTER_PORT"} <= variables.read
    listed = set(re.findall(r"[A-Z][A-Z_]+[A-Z]", image_assets("settings").stdout))
    assert (variables.read | READ_BY_LIBRARIES) - listed == set()


def test_sample_images_are_written_into_the_folder(tmp_path: Path) -> None:
    process = image_assets("sample-images", str(tmp_path / "images"), "--per-label", "1")
    assert process.stdout == f"Wrote sample images to {tmp_path / 'images'}\n"
    assert len(list((tmp_path / "images").rglob("*.*"))) == 11


@pytest.mark.parametrize(
    "command",
    [("sample-images", "/dev/null/x", "--per-label", "0"), ("bench", "--repeats", "0"), ("bench", "--size", "-1")],
)
def test_a_number_below_1_is_rejected(command: tuple[str, ...]) -> None:
    process = image_assets(*command)
    assert process.returncode == 2
    assert "expected a whole number of 1 or more, got" in process.stderr


def test_make_passes_on_a_folder_whose_name_has_spaces() -> None:
    make = ["make", "-n", "bench", "PHOTOGRAPHS=/my photos"]
    answer = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--photographs "/my photos"' in answer.stdout


def test_benchmarks_get_their_options_and_an_exit_code(tmp_path: Path) -> None:
    process = image_assets("bench", "--only", "weather", "--size", "3")
    assert process.returncode == 2
    assert "argument --only: invalid choice: 'weather'" in process.stderr
