"""Installs everything into .venv: packages, Delta's jars, this project, Horovod. Does nothing if nothing changed.

The system's Python runs this before anything is installed: standard library only, and no syntax newer than Python 3.7
until the version is checked.

Packages come in groups (`requirements/groups.ini`). `make demo` starts as soon as the first one is there, and installs
the frameworks and Horovod in the background; every other command waits for them.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.horovod_wheel import PROGRESS_SECONDS, find_wheel, wheel_folder
from scripts.prerequisites import (
    Missing,
    has_gpu,
    missing_access,
    missing_compiler,
    missing_disk,
    missing_java,
    missing_python,
    missing_system,
    to_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"  # the digest of what was installed
PENDING = VENV / "pending"  # exists while the frameworks and Horovod are missing
FAILURE = VENV / "failure"  # why they could not be installed in the background
UNFINISHED = VENV / "unfinished"  # exists while packages are being installed
LOG = VENV / "install.log"
BACKGROUND_LOG = VENV / "background.log"
LOCK = ROOT / ".install.lock"  # beside .venv, which may be recreated
# Compiled here, because a process may be unable to store what it compiles (PYTHONDONTWRITEBYTECODE, another user).
UV = [str(PYTHON), "-m", "uv", "--no-progress", "pip", "install", "--compile-bytecode", "--python", str(PYTHON)]
CODE = ["definitions.py", "gallery", "image_assets", "resources", "scripts", "sensors"]
HASHED = ["--require-hashes", "-r"]
EXTRAS = ("test", "docs")  # groups that only the development of this project needs
GIGABYTES = {"first": 2.0, "frameworks": 6.3, "cuda": 1.0, "test": 0.4, "docs": 0.1}  # on disk, compiled
SHOWN_LINES = 20  # of the log of what failed in the background


def read_groups() -> dict[str, list[str]]:
    """The names of the packages of each group."""
    groups = configparser.ConfigParser()
    groups.read(REQUIREMENTS / "groups.ini")
    return {name: groups[name]["names"].split() for name in groups.sections()}


def pins_of(group: str) -> str:
    """The lines of requirements/all.txt with a group's packages; those of `first` are in no other group."""
    groups = read_groups()
    later = {name for names in groups.values() for name in names}
    pins = re.split(r"^(?=\S)", (REQUIREMENTS / "all.txt").read_text(), flags=re.MULTILINE)
    by_name = {pin.partition("==")[0]: pin for pin in pins if pin}
    return "".join(pin for name, pin in by_name.items() if name in groups.get(group, by_name.keys() - later))


def digest() -> str:
    """A hash of everything that determines what gets installed."""
    import tomllib  # missing in older Pythons, which never get here

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project["tool"] = project["tool"].get("setuptools")
    scripts = [ROOT / "scripts" / name for name in ("horovod_wheel.py", "jars.py")]
    files = [file.read_text() for file in [*sorted(p for p in REQUIREMENTS.iterdir() if p.is_file()), *scripts]]
    inputs = [str(VENV), sys.version_info[:2], project, files, wheel_folder().name]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def stamp_of(group: str) -> Path:
    """The file with the digest of what was installed of a group that not everybody needs."""
    return VENV / f"installed_{group}"


def is_installed(*groups: str) -> bool:
    """Whether exactly this was installed to the end, with these groups."""
    stamps = [STAMP, *map(stamp_of, groups)]
    return PYTHON.exists() and all(stamp.is_file() and stamp.read_text() == digest() for stamp in stamps)


def is_own() -> bool:
    """Whether .venv was created at this path, which its programs contain."""
    settings = VENV / "pyvenv.cfg"
    command = rf"^command = .* {re.escape(str(VENV))}$"
    return settings.is_file() and re.search(command, settings.read_text(), re.MULTILINE) is not None


def is_reusable() -> bool:
    """Whether .venv can be updated: created at this path, for Python 3.11, and not left half installed."""
    if UNFINISHED.exists() or not PYTHON.exists() or not is_own():
        return False
    process = subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    return process.returncode == 0 and "(python 3.11)" in process.stdout


def list_missing() -> list[Missing]:
    """What the machine lacks for the remaining steps."""
    system = missing_system()
    if system:
        return [system]
    missing = [missing_python(), missing_java(), missing_own_environment()]
    if missing[0] or not is_installed():
        missing += [missing_access(ROOT), missing_access(wheel_folder().parent)]
        if find_wheel() is None:
            missing.append(missing_compiler())
        if not PYTHON.exists():
            missing.append(missing_disk(ROOT))
    return [one for one in missing if one]


def missing_own_environment() -> Missing | None:
    """An environment of this folder's own: a linked one of another folder would be emptied for its users as well."""
    if VENV.is_symlink() and (VENV / "pyvenv.cfg").is_file() and not is_own():
        remedy = f"Remove the link {VENV} (not what it leads to), and run the command again."
        return Missing(f"a virtual environment of its own: {VENV} is a link to {VENV.resolve()}", remedy=remedy)
    return None


def run(command: list[str], gigabytes: float = 0) -> None:
    """Runs a command with a line of progress every few seconds; shows its output only if it fails."""
    start, free = time.monotonic(), shutil.disk_usage(ROOT).free
    total = f" of about {gigabytes:.1f}" if gigabytes else ""
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, close_fds=False)
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                written = max(0, free - shutil.disk_usage(ROOT).free) / 1e9
                print(f"  {time.monotonic() - start:3.0f} s, {written:.1f}{total} GB written", flush=True)
    if process.returncode != 0:
        raise SystemExit(f"{LOG.read_text()}\nFailed: {' '.join(command)}\nFix the error above and run it again.")


def make_environment() -> None:
    """Creates the virtual environment, or keeps a usable one."""
    if not is_reusable():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    for file in (STAMP, FAILURE):
        file.unlink(missing_ok=True)
    PENDING.touch()


def install_packages(group: str) -> None:
    """Installs a group's packages; if interrupted, the next run starts over, because a package may be incomplete."""
    pins = VENV / f"{group}.txt"
    pins.write_text(pins_of(group))
    UNFINISHED.touch()
    # all.txt was resolved when it was compiled; resolving again would take as long as the installation itself.
    run([*UV, "--no-deps", *HASHED, str(pins)], GIGABYTES[group])
    UNFINISHED.unlink()


def install_first() -> None:
    """Installs uv, and with it the packages that every command needs."""
    run([str(PYTHON), "-m", "pip", "install", "--quiet", *HASHED, "requirements/uv.txt"])
    install_packages("first")


def install_project() -> None:
    """Installs this project in place, and compiles it."""
    run([*UV, "--no-deps", "--no-build-isolation", "-e", "."])
    run([str(PYTHON), "-m", "compileall", "-q", *CODE])


def run_module(name: str) -> None:
    """Runs one of the scripts in the environment."""
    subprocess.run([str(PYTHON), "-m", f"scripts.{name}"], cwd=ROOT, check=True, close_fds=False)


STEPS = {
    "virtual environment": make_environment,
    f"packages ({GIGABYTES['first']:.1f} GB on disk)": install_first,
    "Delta's jars": lambda: run_module("jars"),
    "this project": install_project,
}
LATER_STEPS = {
    f"frameworks ({GIGABYTES['frameworks']:.1f} GB on disk)": lambda: install_packages("frameworks"),
    "Horovod": lambda: run_module("horovod_wheel"),
}


def say(text: str) -> None:
    """Prints a line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def take(steps: Mapping[str, Callable[[], object]], before: int = 0) -> None:
    """Takes steps in order, each with a line that says which one of how many it is."""
    for number, (name, step) in enumerate(steps.items(), start=before + 1):
        say(f"{number}/{len(STEPS) + len(LATER_STEPS)} {name}")
        step()


def install_rest() -> None:
    """Installs what training needs, after everything else."""
    take(LATER_STEPS, before=len(STEPS))
    PENDING.unlink(missing_ok=True)
    STAMP.write_text(digest())
    install_groups([])
    say(f"installed in {VENV}")


def install_groups(groups: Sequence[str]) -> None:
    """Installs packages that not everybody needs: those of the groups, and those for a GPU if there is one."""
    for group in [*groups, *(["cuda"] if has_gpu() else [])]:
        if not is_installed(group):
            say(f"packages for {group} ({GIGABYTES[group]:.1f} GB on disk)")
            install_packages(group)
            stamp_of(group).write_text(digest())


@contextmanager
def turn() -> Iterator[None]:
    """Waits until no other process installs here, and shows what that one prints in the background.

    The steps inherit the lock: if this process is killed, the next one waits for the step that still runs.
    """
    import fcntl  # missing on systems that `list_missing` rejects

    shown = None
    with LOCK.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lines = BACKGROUND_LOG.read_text().splitlines() if BACKGROUND_LOG.is_file() else []
            if shown is None:
                print("Waiting for the installation that another process has begun:", flush=True)
                shown = max(0, len(lines) - 1)
            for line in lines[shown:]:
                print(line, flush=True)
            shown = len(lines)
            time.sleep(1)
        yield


def start_in_background() -> None:
    """Starts the remaining installation as a process that outlives this one, at a lower priority than the path."""
    command = ["nice", sys.executable, "-m", "scripts.install", "--rest"]
    with BACKGROUND_LOG.open("w") as log:
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    print(f"The rest is being installed in the background; it logs to {BACKGROUND_LOG}", flush=True)


def finish() -> int:
    """Installs what is still missing after the first steps, unless that has failed in the background."""
    with turn():
        if is_installed():
            return 0
        if FAILURE.exists():
            print(*BACKGROUND_LOG.read_text().splitlines()[-SHOWN_LINES:], sep="\n", file=sys.stderr)
            print(f"The frameworks and Horovod could not be installed: {BACKGROUND_LOG} says why.", file=sys.stderr)
            return 1
        if not is_reusable():
            print("The installation was interrupted. Run the same command again.", file=sys.stderr)
            return 1
        try:
            install_rest()
        except (SystemExit, subprocess.CalledProcessError):
            FAILURE.touch()
            raise
        return 0


def install(groups: list[str], in_background: bool) -> int:
    """Installs what is not there yet: everything, or the first steps now and the rest in the background."""
    with turn():
        if not is_installed():
            take(STEPS)
            if in_background:
                start_in_background()
                return 0
            install_rest()
        install_groups(groups)
    return 0


def main() -> int:
    """Reports what the machine lacks, or installs what changed."""
    parser = argparse.ArgumentParser("python -m scripts.install", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--with", dest="groups", action="append", choices=EXTRAS, default=[], help="also these packages"
    )
    parser.add_argument("--background", action="store_true", help="leave what only training needs to the background")
    parser.add_argument("--rest", action="store_true", help="wait for the background, or do what it should have done")
    arguments = parser.parse_args()
    missing = list_missing()
    if missing:
        print(to_message(missing), file=sys.stderr)
        return 1
    try:
        return finish() if arguments.rest else install(arguments.groups, arguments.background)
    except subprocess.CalledProcessError as error:
        print(f"Failed: {' '.join(map(str, error.cmd))}\nFix the error above and run it again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run it again to continue.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
