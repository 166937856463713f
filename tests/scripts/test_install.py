import ast
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.install import pins_of, read_groups
from scripts.prerequisites import Missing, has_gpu, missing_access, missing_compiler, missing_system, to_message

ROOT = Path(__file__).parents[2]


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def install(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "CXX")}
    return subprocess.run(
        [sys.executable, "-m", "scripts.install"],
        cwd=ROOT,
        env={**environment, "PATH": str(path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["install", "horovod_wheel", "prerequisites"])
def test_an_old_python_can_read_what_says_that_it_is_too_old(name: str) -> None:
    ast.parse((ROOT / "scripts" / f"{name}.py").read_text(), feature_version=(3, 7))


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """A copy of what the installer reads, where nothing is installed yet."""
    for name in ("requirements", "resources", "resources/processes", "scripts"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for file in (ROOT / name).iterdir():
            if file.is_file():
                (tmp_path / "root" / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "root" / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path / "root"


def test_missing_java_is_reported_with_the_commands_that_install_it(tmp_path: Path) -> None:
    answer = install(tmp_path)
    assert answer.returncode == 1
    assert "Java 17 or 21: no java in the PATH" in answer.stderr
    assert "apt-get install openjdk-17-jre-headless" in answer.stderr
    assert "brew install openjdk@21" in answer.stderr


def test_a_wrong_java_is_reported_with_its_version(tmp_path: Path) -> None:
    java = program(tmp_path, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    answer = install(tmp_path)
    assert answer.returncode == 1
    assert f"{java} is 11.0.2" in answer.stderr


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    program(tmp_path / "path", "java", "echo 'openjdk version \"17.0.1\"' >&2")
    answer = install(tmp_path / "path", JAVA_HOME=str(tmp_path / "nowhere"))
    assert answer.returncode == 1
    assert f"no java in JAVA_HOME={tmp_path / 'nowhere'}" in answer.stderr


def test_everything_missing_is_reported_at_once_and_nothing_is_created(tmp_path: Path, own_root: Path) -> None:
    (tmp_path / "empty").mkdir()
    program(tmp_path / "empty", "apt-get", "exit 1")
    answer = subprocess.run(
        [sys.executable, "-m", "scripts.install"],
        cwd=own_root,
        env={"PATH": str(tmp_path / "empty"), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "no java" in answer.stderr
    assert "C++ compiler" in answer.stderr
    assert "sudo apt-get install openjdk-17-jre-headless g++ make python3.11-dev" in answer.stderr
    assert "dnf" not in answer.stderr
    assert not (own_root / ".venv").exists()


def test_a_compiler_without_make_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "g++", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    missing = missing_compiler()
    assert missing is not None
    assert missing.what.startswith("make (to build Horovod)")
    program(tmp_path, "make", "exit 0")
    assert missing_compiler() is None


def test_a_compiler_that_cannot_compile_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = program(tmp_path, "broken", "echo 'fatal error: no such header' >&2; exit 1")
    monkeypatch.setenv("CXX", str(compiler))
    missing = missing_compiler()
    assert missing is not None
    assert "no such header" in missing.what


def test_a_folder_that_cannot_be_created_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = missing_access(tmp_path / "file" / "folder")
    assert missing is not None
    assert "Not a directory" in missing.what


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_other_systems_are_refused_with_what_to_use(platform: str, name: str) -> None:
    missing = missing_system(platform)
    assert missing is not None
    message = to_message([missing])
    assert f"Linux: this is {name}" in message
    assert "WSL 2" in message
    assert missing_system("linux") is None


def test_packages_needed_twice_are_named_once() -> None:
    message = to_message([Missing("one", ("g++ make", "gcc", "gcc")), Missing("two", ("make", "gcc", "gcc"))])
    assert message.count("make") == message.count("install g++ make")


@pytest.mark.parametrize("name", ["install", "prerequisites", "horovod_wheel", "jars", "release_notes"])
def test_what_runs_before_the_installation_needs_the_standard_library_only(name: str) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import scripts.{name}"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


GROUPS = ("first", *read_groups())
NAMES = {group: re.findall(r"^([a-z0-9._-]+)==", pins_of(group), re.MULTILINE) for group in GROUPS}
# What is installed before a group: a package of the group may require these, and others of the group.
BEFORE = {group: ["first", "frameworks"] for group in GROUPS} | {"first": [], "frameworks": ["first"]}
NOT_NEEDED = set(read_groups()["cuda"])  # PyTorch requires it, but works without it on a CPU


def test_the_groups_split_the_pinned_packages() -> None:
    pinned = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / "all.txt").read_text(), re.MULTILINE)
    assert sorted(name for names in NAMES.values() for name in names) == sorted(pinned)
    assert {group: sorted(names) for group, names in read_groups().items()} == {
        group: sorted(NAMES[group]) for group in read_groups()
    }


def test_every_pin_of_a_group_has_its_hashes() -> None:
    for group in GROUPS:
        pins = re.split(r"^(?=\S)", pins_of(group), flags=re.MULTILINE)[1:]
        assert len(pins) == len(NAMES[group])
        assert all("--hash=sha256:" in pin for pin in pins)


@pytest.mark.parametrize("group", GROUPS)
def test_no_package_is_installed_before_what_it_requires(group: str) -> None:
    before = {name for earlier in (group, *BEFORE[group]) for name in NAMES[earlier]}
    later = {name for names in NAMES.values() for name in names} - before - NOT_NEEDED
    required = {
        canonicalize_name(requirement.name)
        for distribution in distributions()
        if canonicalize_name(distribution.name) in NAMES[group]
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    assert sorted(required & later) == []


@pytest.mark.parametrize(("choice", "driver", "expected"), [("", True, True), ("", False, False), ("no", True, False)])
def test_libraries_for_gpus_are_installed_where_there_is_a_driver(
    choice: str, driver: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if driver:
        program(tmp_path, "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA", choice)
    assert has_gpu() is expected
    monkeypatch.setenv("CUDA", "yes")
    assert has_gpu()


def test_another_word_for_cuda_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA", "12")
    with pytest.raises(SystemExit, match="CUDA is '12': expected yes, no or auto"):
        has_gpu()


@pytest.fixture
def half_installed(own_root: Path) -> Path:
    """A root where the first steps are done, and the rest is to be installed in the background."""
    environment = own_root / ".venv"
    environment.mkdir()
    (environment / "pyvenv.cfg").write_text(f"command = python3.11 -m venv {environment}\n")
    (environment / "pending").touch()
    program(environment / "bin", "python", "echo 'pip 1.0 (python 3.11)'")
    return own_root


def finish(root: Path) -> subprocess.Popen[str]:
    """What the demo runs before it trains."""
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.install", "--rest"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_training_waits_for_the_background_and_shows_its_progress(half_installed: Path) -> None:
    background = (
        "from scripts import install\n"
        "with install.turn():\n"
        "    install.BACKGROUND_LOG.write_text('building Horovod: 41 %\\n')\n"
        "    print('started', flush=True)\n"
        "    input()\n"
        "    install.STAMP.write_text(install.digest())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", background], cwd=half_installed, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "started\n"
        with finish(half_installed) as waiting:
            assert waiting.stdout is not None
            assert "another process has begun" in waiting.stdout.readline()
            assert waiting.stdout.readline() == "building Horovod: 41 %\n"
            other.communicate("\n")
            assert waiting.wait() == 0


def test_the_next_command_waits_for_a_step_whose_command_was_killed(half_installed: Path) -> None:
    step = half_installed / "scripts" / "slow_step.py"
    step.write_text("from scripts import install\ninput()\ninstall.STAMP.write_text(install.digest())\n")
    command = (
        "import os, signal, threading\n"
        "from scripts import install\n"
        f"install.PYTHON = {sys.executable!r}\n"
        "threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        "with install.turn():\n"
        "    print('started', flush=True)\n"
        "    install.run_module('slow_step')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command], cwd=half_installed, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdin is not None
        assert killed.stdout is not None
        assert killed.stdout.readline() == "started\n"
        with finish(half_installed) as waiting:
            assert waiting.stdout is not None
            assert "another process has begun" in waiting.stdout.readline()
            assert killed.wait() == -signal.SIGKILL
            assert waiting.poll() is None
            killed.stdin.write("\n")
            killed.stdin.flush()
            assert waiting.wait() == 0


def test_a_failure_in_the_background_is_reported_before_training(half_installed: Path) -> None:
    (half_installed / ".venv" / "background.log").write_text("Horovod did not build.\n")
    (half_installed / ".venv" / "failure").touch()
    with finish(half_installed) as answer:
        _, errors = answer.communicate()
    assert answer.returncode == 1
    assert errors.startswith("Horovod did not build.\nThe frameworks and Horovod could not be installed:")


def test_packages_that_were_left_incomplete_are_installed_again_from_the_start(half_installed: Path) -> None:
    (half_installed / ".venv" / "unfinished").touch()
    with finish(half_installed) as answer:
        _, errors = answer.communicate()
    assert answer.returncode == 1
    assert errors == "The installation was interrupted. Run the same command again.\n"


def test_an_environment_of_another_folder_is_not_emptied(half_installed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (half_installed / ".venv").rename(other)
    (other / "pyvenv.cfg").write_text(f"command = python3.11 -m venv {other}\n")
    (half_installed / ".venv").symlink_to(other)
    files = sorted(other.rglob("*"))
    answer = subprocess.run(
        [sys.executable, "-m", "scripts.install"], cwd=half_installed, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert f".venv is a link to {other}" in answer.stderr
    assert sorted(other.rglob("*")) == files


def test_an_interrupted_installation_through_a_link_may_be_run_again(half_installed: Path, tmp_path: Path) -> None:
    (half_installed / ".venv").rename(tmp_path / "larger disk")
    (half_installed / ".venv").symlink_to(tmp_path / "larger disk")
    (half_installed / ".venv" / "unfinished").touch()
    with finish(half_installed) as answer:
        _, errors = answer.communicate()
    assert errors == "The installation was interrupted. Run the same command again.\n"
