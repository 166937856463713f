"""Everything that runs need, in .venv: packages, Horovod, Delta's jars. Does nothing where nothing changed.

Run by the system's Python, before anything is installed: standard library only, and no newer syntax than Python 3.7's
up to where the wrong Python is named.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.horovod_wheel import find_wheel, wheel_folder
from scripts.prerequisites import (
    Missing,
    missing_access,
    missing_compiler,
    missing_disk,
    missing_java,
    missing_python,
    to_message,
)

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"  # what was installed, as a digest
UNFINISHED = VENV / "unfinished"  # there while packages are being put in place
LOG = VENV / "install.log"
PROGRESS_SECONDS = 15
UV = [str(PYTHON), "-m", "uv", "--no-progress", "pip", "install", "--python", str(PYTHON)]
HASHED = ["--require-hashes", "-r"]


def digest() -> str:
    """What decides what is installed, in one string: it changes when any of it does."""
    import tomllib  # not in the Pythons that only get as far as being told that they are the wrong one

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project["tool"] = project["tool"].get("setuptools")
    scripts = [ROOT / "scripts" / "horovod_wheel.py", ROOT / "scripts" / "jars.py"]
    files = [file.read_text() for file in [*sorted((ROOT / "requirements").glob("*.txt")), *scripts]]
    return hashlib.sha256(json.dumps([str(VENV), sys.version_info[:2], project, files]).encode()).hexdigest()


def is_installed() -> bool:
    """Whether a finished installation of exactly this is there."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == digest()


def is_whole() -> bool:
    """Whether .venv can be built on: made in this place, for Python 3.11, not left in the middle of something."""
    settings = VENV / "pyvenv.cfg"
    if UNFINISHED.exists() or not settings.is_file() or not PYTHON.exists():
        return False
    if not re.search(rf"^command = .* {re.escape(str(VENV))}$", settings.read_text(), re.MULTILINE):
        return False
    answer = subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and "(python 3.11)" in answer.stdout


def list_missing() -> list[Missing]:
    """What the machine lacks for what is still to be done."""
    missing = [missing_python(), missing_java()]
    if missing[0] or not is_installed():
        missing += [missing_access(ROOT), missing_access(wheel_folder().parent)]
        if find_wheel() is None:
            missing.append(missing_compiler())
        if not PYTHON.exists():
            missing.append(missing_disk(ROOT))
    return [one for one in missing if one]


def run(command: list[str]) -> None:
    """Run a quiet command, with a line of progress every few seconds; what it says is shown when it fails."""
    started, free = time.monotonic(), shutil.disk_usage(ROOT).free
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                written = max(0, free - shutil.disk_usage(ROOT).free) / 1e9
                print(f"  {time.monotonic() - started:3.0f} s, {written:.1f} GB written", flush=True)
    if process.returncode != 0:
        raise SystemExit(f"{LOG.read_text()}\nThat failed: {' '.join(command)}\nMend what it names and run it again.")


def make_environment() -> None:
    """A virtual environment; what cannot be built on is made anew."""
    if not is_whole():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    STAMP.unlink(missing_ok=True)


def install_packages() -> None:
    """The pinned packages. An interrupted one may leave half a package: the mark says so to the next run."""
    run([str(PYTHON), "-m", "pip", "install", "--quiet", *HASHED, "requirements/uv.txt"])
    UNFINISHED.touch()
    run([*UV, *HASHED, "requirements/all.txt"])
    UNFINISHED.unlink()


def install() -> None:
    """All steps, in order; each finds out by itself what of it is done already."""
    started = time.monotonic()
    steps = (
        ("virtual environment", make_environment),
        ("packages (7.7 GB on disk)", install_packages),
        ("Horovod", lambda: subprocess.run([str(PYTHON), "-m", "scripts.horovod_wheel"], cwd=ROOT, check=True)),
        ("Delta's jars", lambda: subprocess.run([str(PYTHON), "-m", "scripts.jars"], cwd=ROOT, check=True)),
        ("this project", lambda: run([*UV, "--no-deps", "--no-build-isolation", "-e", "."])),
    )
    for number, (name, step) in enumerate(steps, start=1):
        print(f"[{time.monotonic() - started:4.0f} s] {number}/{len(steps)} {name}", flush=True)
        step()
    STAMP.write_text(digest())
    print(f"[{time.monotonic() - started:4.0f} s] everything is installed in {VENV}", flush=True)


def main() -> int:
    """Say what is missing, or install what changed."""
    missing = list_missing()
    if missing:
        print(to_message(missing), file=sys.stderr)
        return 1
    if is_installed():
        return 0
    try:
        install()
    except subprocess.CalledProcessError as error:
        print(f"That failed: {' '.join(map(str, error.cmd))}\nMend what it names and run it again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run it again: it goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
