"""Installs everything into .venv: packages, Horovod, Delta's jars, this project. Does nothing if nothing changed.

The system's Python runs this before anything is installed: standard library only, and no syntax newer than Python 3.7
until the version is checked.
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

from scripts.horovod_wheel import PROGRESS_SECONDS, find_wheel, wheel_folder
from scripts.prerequisites import (
    Missing,
    missing_access,
    missing_compiler,
    missing_disk,
    missing_java,
    missing_python,
    missing_system,
    to_message,
)

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"  # the digest of what was installed
UNFINISHED = VENV / "unfinished"  # exists while packages are being installed
LOG = VENV / "install.log"
# Compiled here, because a process may be unable to store what it compiles (PYTHONDONTWRITEBYTECODE, another user).
UV = [str(PYTHON), "-m", "uv", "--no-progress", "pip", "install", "--compile-bytecode", "--python", str(PYTHON)]
CODE = ["definitions.py", "gallery", "image_assets", "resources", "scripts", "sensors"]
HASHED = ["--require-hashes", "-r"]


def digest() -> str:
    """A hash of everything that determines what gets installed."""
    import tomllib  # missing in older Pythons, which never get here

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project["tool"] = project["tool"].get("setuptools")
    scripts = [ROOT / "scripts" / name for name in ("horovod_wheel.py", "jars.py")]
    files = [file.read_text() for file in [*sorted((ROOT / "requirements").glob("*.txt")), *scripts]]
    inputs = [str(VENV), sys.version_info[:2], project, files, wheel_folder().name]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def is_installed() -> bool:
    """Whether exactly this was installed to the end."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == digest()


def is_reusable() -> bool:
    """Whether .venv can be updated: created at this path, for Python 3.11, and not left half installed."""
    settings = VENV / "pyvenv.cfg"
    if UNFINISHED.exists() or not settings.is_file() or not PYTHON.exists():
        return False
    if not re.search(rf"^command = .* {re.escape(str(VENV))}$", settings.read_text(), re.MULTILINE):
        return False
    process = subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    return process.returncode == 0 and "(python 3.11)" in process.stdout


def list_missing() -> list[Missing]:
    """What the machine lacks for the remaining steps."""
    if system := missing_system():
        return [system]
    missing = [missing_python(), missing_java()]
    if missing[0] or not is_installed():
        missing += [missing_access(ROOT), missing_access(wheel_folder().parent)]
        if find_wheel() is None:
            missing.append(missing_compiler())
        if not PYTHON.exists():
            missing.append(missing_disk(ROOT))
    return [one for one in missing if one]


def run(command: list[str]) -> None:
    """Runs a command with a line of progress every few seconds; shows its output only if it fails."""
    start, free = time.monotonic(), shutil.disk_usage(ROOT).free
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                written = max(0, free - shutil.disk_usage(ROOT).free) / 1e9
                print(f"  {time.monotonic() - start:3.0f} s, {written:.1f} GB written", flush=True)
    if process.returncode != 0:
        raise SystemExit(f"{LOG.read_text()}\nFailed: {' '.join(command)}\nFix the error above and run it again.")


def make_environment() -> None:
    """Creates the virtual environment, or keeps a usable one."""
    if not is_reusable():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    STAMP.unlink(missing_ok=True)


def install_packages() -> None:
    """Installs the pinned packages; if interrupted, the next run starts over, because a package may be incomplete."""
    run([str(PYTHON), "-m", "pip", "install", "--quiet", *HASHED, "requirements/uv.txt"])
    UNFINISHED.touch()
    run([*UV, *HASHED, "requirements/all.txt"])
    UNFINISHED.unlink()


def install_project() -> None:
    """Installs this project in place, and compiles it."""
    run([*UV, "--no-deps", "--no-build-isolation", "-e", "."])
    run([str(PYTHON), "-m", "compileall", "-q", *CODE])


def install() -> None:
    """Runs all steps in order; each skips what is already done."""
    start = time.monotonic()
    steps = (
        ("virtual environment", make_environment),
        ("packages (7.7 GB on disk)", install_packages),
        ("Horovod", lambda: subprocess.run([str(PYTHON), "-m", "scripts.horovod_wheel"], cwd=ROOT, check=True)),
        ("Delta's jars", lambda: subprocess.run([str(PYTHON), "-m", "scripts.jars"], cwd=ROOT, check=True)),
        ("this project", install_project),
    )
    for number, (name, step) in enumerate(steps, start=1):
        print(f"[{time.monotonic() - start:4.0f} s] {number}/{len(steps)} {name}", flush=True)
        step()
    STAMP.write_text(digest())
    print(f"[{time.monotonic() - start:4.0f} s] installed in {VENV}", flush=True)


def main() -> int:
    """Reports what the machine lacks, or installs what changed."""
    missing = list_missing()
    if missing:
        print(to_message(missing), file=sys.stderr)
        return 1
    if is_installed():
        return 0
    try:
        install()
    except subprocess.CalledProcessError as error:
        print(f"Failed: {' '.join(map(str, error.cmd))}\nFix the error above and run it again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run it again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
