"""The built wheel holds every file that the code opens, and works outside a checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.wheels import PIP, PROJECT, ROOT, build_wheel, package_files

NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "tests", "benchmarks", "docs")
GROUPS = {
    "project": PROJECT["project"]["dependencies"],
    **PROJECT["project"]["optional-dependencies"],
    **PROJECT["dependency-groups"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel of this checkout is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    wheel = build_wheel(folder / "source", folder)
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in an unrelated folder, with the installed wheel first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "IMAGE_ASSETS_HOME": str(folder / "home"), **variables}
    environment.pop("IMAGE_ASSETS_LANDING", None)
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    files = package_files()
    assert len(files) > 100
    assert sorted(file for file in files if not (installed / file).is_file()) == []


def test_the_graph_loads_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = "import definitions; print(definitions.__file__, len(definitions.defs.resolve_all_job_defs()))"
    program += "; from image_assets.models.lineage import code_version; print(code_version())"
    for command in (
        ["init", "-q"],
        ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-mA"],
    ):
        subprocess.run(["git", "-C", str(installed.parent), *command], check=True)
    process = run(installed, tmp_path, "-c", program)
    assert process.returncode == 0, process.stderr
    file, jobs, code = process.stdout.split()
    assert file == str(installed / "definitions.py")
    assert int(jobs) > 10
    assert code == PROJECT["project"]["version"], "not the commit of somebody else's checkout"


def test_the_command_explains_itself_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    command = str(installed / "bin" / "image-assets")
    usage = run(installed, tmp_path, command, "--help")
    assert usage.returncode == 0, usage.stderr
    assert "IMAGE_ASSETS_LANDING" in usage.stdout
    for name in ("docs", "bench"):
        refusal = run(installed, tmp_path, command, name)
        assert "needs a checkout" in refusal.stderr
        assert refusal.returncode == 1


def test_commands_prepare_and_test_a_home_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    command = str(installed / "bin" / "image-assets")
    (tmp_path / "empty").mkdir()
    demo = run(installed, tmp_path, command, "demo", str(tmp_path / "empty"), IMAGE_ASSETS_BACKBONE="none")
    assert "contains no image files" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert (tmp_path / "home" / "dagster" / "dagster.yaml").is_file()
    doctor = run(installed, tmp_path, command, "doctor", "home", "delta jars")
    assert f"home                ok       {tmp_path / 'home'}" in doctor.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_no_dependency_is_listed_twice(group: str) -> None:
    names = [Requirement(requirement).name.lower() for requirement in GROUPS[group]]
    assert sorted(set(names)) == sorted(names)
