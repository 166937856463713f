"""Horovod's wheel, built once per Python, torch and TensorFlow version and stored in the user's cache.

`resources/processes/horovod.py` lists the edits of its source; each must match exactly once, or the build stops.
Runs before and after the environment exists: standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resources.processes.horovod import ADAPTATIONS, SourceEdit

ALL_REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "all.txt"
REQUIREMENT = Path(__file__).with_name("horovod.txt")  # the source distribution and its hash
PROGRESS_SECONDS = 15
# Shares of the build's time, measured: when the first file is compiled, and when make has begun the last ones.
CONFIGURED, COMPILED, LAST_PERCENT = 0.13, 0.85, 98

SOURCE_EDITS = [change for change in ADAPTATIONS if isinstance(change, SourceEdit)]
BUILD_SETTINGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_CPU_OPERATIONS": "GLOO",
    "LDFLAGS": "-Wl,-s",
}


def pinned(package: str) -> str:
    """The version of a package in requirements/all.txt, or the installed one outside a checkout."""
    if not ALL_REQUIREMENTS.is_file():
        from importlib import metadata  # missing in Python 3.7, which must get as far as the version check

        return metadata.version(package)
    found = re.search(rf"^{package}==(\S+)", ALL_REQUIREMENTS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"requirements/all.txt does not pin {package}: compile it again from pyproject.toml")
    return found.group(1)


def wheel_folder() -> Path:
    """The cache folder for the wheel of this Python, these frameworks and these edits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    edits = [(edit.file, edit.pattern, edit.replacement) for edit in SOURCE_EDITS]
    recipe = f"{REQUIREMENT.read_text()}{edits}{BUILD_SETTINGS}"
    frameworks = f"torch{pinned('torch')}-tensorflow{pinned('tensorflow')}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    return cache / "image-assets" / f"horovod-{python}-{frameworks}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"


def find_wheel() -> Path | None:
    """The wheel in the cache, if it was built before."""
    return next(wheel_folder().glob("horovod-*.whl"), None)


def apply_edits(source: Path) -> None:
    """Edits the unpacked source so that it builds.

    Raises:
        ValueError: A pattern does not match exactly once.
    """
    for edit in SOURCE_EDITS:
        file = source / edit.file
        text, found = re.subn(edit.pattern, edit.replacement, file.read_text(), flags=re.MULTILINE)
        if found != 1:
            raise ValueError(
                f"{edit.file}: expected one match for an edit, found {found}; is this the original Horovod 0.28.1?"
            )
        file.write_text(text)


def download_source(folder: Path) -> Path:
    """Downloads and unpacks the source distribution; pip checks its hash."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    hashed = ["--no-build-isolation", "--require-hashes", "-r", str(REQUIREMENT), "-d", str(folder)]
    subprocess.run([*pip, *hashed], check=True)
    archive = next(folder.glob("horovod-*.tar.gz"))
    # Not `TarFile.extractall` with a filter: Python 3.11.2, which Debian 12 has, does not know any.
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


def share_done(output: str) -> float:
    """The share of the build's time that has passed when the compiler's output has come this far.

    make counts files, but no file is compiled at first, and the last ones take longer than others.
    """
    percents = re.findall(r"\[ *(\d+)%\]", output)
    return CONFIGURED + (COMPILED - CONFIGURED) * min(int(percents[-1]) / LAST_PERCENT, 1) if percents else 0.0


def to_progress(seconds: float, expected: float | None) -> str:
    """How long the build has run, and how long it will, if that can be estimated."""
    if expected is None:
        return f"{seconds:3.0f} s, preparing"
    left = expected - seconds
    done = f"{seconds:3.0f} s, {min(99, 100 * seconds / expected):.0f} %"
    return f"{done}, about {left:.0f} s left" if left > 0 else f"{done}, nearly done"


def build(source: Path, wheels: Path, log: Path) -> None:
    """Builds the wheel with a line of progress every few seconds; the compiler's output goes to `log`."""
    environment = {**os.environ, **BUILD_SETTINGS, "MAKEFLAGS": f"-j{os.cpu_count() or 1}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    wheel = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    start, share, expected = time.monotonic(), 0.0, None
    with log.open("w") as output:
        process = subprocess.Popen([*wheel, str(source)], env=environment, stdout=output, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                seconds, before = time.monotonic() - start, share
                share = share_done(log.read_text(errors="replace"))
                if share > before:
                    expected = seconds / share
                print(f"  building Horovod: {to_progress(seconds, expected)}", flush=True)
    if process.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()
        # pip cleans up after the error: the last lines alone often do not contain it.
        shown = "\n".join([*(line for line in lines[:-30] if "error" in line.lower()), *lines[-30:]][-60:])
        raise SystemExit(f"{shown}\nHorovod did not build. The full compiler output is in {log}")


def main() -> None:
    """Installs the wheel, building it first if the cache has none."""
    folder = wheel_folder()
    if find_wheel() is None:
        print("  building Horovod 0.28.1 (about three minutes on two cores, once per user)", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = download_source(Path(scratch))
            apply_edits(source)
            build(source, Path(scratch) / "wheels", folder / "build.log")
            for wheel in (Path(scratch) / "wheels").glob("horovod-*.whl"):
                wheel.rename(folder / wheel.name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*install, str(find_wheel())], check=True)


if __name__ == "__main__":
    main()
