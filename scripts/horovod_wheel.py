"""Horovod's wheel, built once per Python, torch and TensorFlow version and stored in the user's cache.

Horovod 0.28.1 is the last release and does not build against current frameworks. The edits below are all it takes; each
must match exactly once, or the build stops. Runs before and after the environment exists: standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import metadata
from pathlib import Path

ALL_REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "all.txt"
REQUIREMENT = Path(__file__).with_name("horovod.txt")  # the source distribution and its hash
PROGRESS_SECONDS = 15

KERAS_BACKEND = re.compile(
    r"^if is_version_greater_equal_than\(tf\.__version__, \"2\.6\.0\"\):\n"
    r"    from keras import backend as K\nelse:\n    from tensorflow\.python\.keras import backend as K\n",
    re.MULTILINE,
)
# Without this guard, Horovod wraps a Keras 3 optimizer but averages nothing: each rank silently trains its own model.
KERAS_3_GUARD = """\
    if not hasattr(optimizer, "_compute_gradients") and not hasattr(optimizer, "compute_gradients"):
        raise TypeError(
            "Horovod's DistributedOptimizer cannot average the gradients of a Keras 3 optimizer: "
            "use horovod.tensorflow.DistributedGradientTape, or a legacy optimizer of tf-keras"
        )
"""
DISTRIBUTED_OPTIMIZER = re.compile(
    r"^    class _DistributedOptimizer\(\*optimizer\.__class__\.__bases__\):\n", re.MULTILINE
)
# file, pattern, replacement
EDITS = (
    ("CMakeLists.txt", re.compile(r"set\(CMAKE_CXX_STANDARD 14\)"), "set(CMAKE_CXX_STANDARD 17)"),
    ("horovod/torch/CMakeLists.txt", re.compile(r"set\(CMAKE_CXX_STANDARD 14\)"), "set(CMAKE_CXX_STANDARD 17)"),
    (
        "horovod/tensorflow/xla_mpi_ops.cc",
        re.compile(r"^#if TENSORFLOW_VERSION >= 2006000000$", re.MULTILINE),
        "#if TENSORFLOW_VERSION >= 2006000000 && HAVE_GPU",
    ),
    ("horovod/tensorflow/keras/__init__.py", KERAS_BACKEND, "K = keras.backend\n"),
    ("horovod/tensorflow/keras/callbacks.py", KERAS_BACKEND, "K = keras.backend\n"),
    ("horovod/_keras/__init__.py", DISTRIBUTED_OPTIMIZER, KERAS_3_GUARD + r"\g<0>"),
)
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
        return metadata.version(package)
    found = re.search(rf"^{package}==(\S+)", ALL_REQUIREMENTS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"requirements/all.txt does not pin {package}: compile it again from pyproject.toml")
    return found.group(1)


def wheel_folder() -> Path:
    """The cache folder for the wheel of this Python, these frameworks and these edits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    edits = [(name, pattern.pattern, replacement) for name, pattern, replacement in EDITS]
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
    for name, pattern, replacement in EDITS:
        file = source / name
        text, found = pattern.subn(replacement, file.read_text())
        if found != 1:
            raise ValueError(
                f"{name}: expected one match for an edit, found {found}; is this the original Horovod 0.28.1?"
            )
        file.write_text(text)


def download_source(folder: Path) -> Path:
    """Downloads and unpacks the source distribution; pip checks its hash."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    hashed = ["--no-build-isolation", "--require-hashes", "-r", str(REQUIREMENT), "-d", str(folder)]
    subprocess.run([*pip, *hashed], check=True)
    archive = next(folder.glob("horovod-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def build(source: Path, wheels: Path, log: Path) -> None:
    """Builds the wheel with a line of progress every few seconds; the compiler's output goes to `log`."""
    environment = {**os.environ, **BUILD_SETTINGS, "MAKEFLAGS": f"-j{os.cpu_count() or 1}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    wheel = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen([*wheel, str(source)], env=environment, stdout=output, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                percent = re.findall(r"\[ *(\d+)%\]", log.read_text(errors="replace"))
                seconds = time.monotonic() - start
                print(f"  building Horovod: {seconds:3.0f} s, {percent[-1] if percent else 0} %", flush=True)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"{tail}\nHorovod did not build. The full compiler output is in {log}")


def main() -> None:
    """Installs the wheel, building it first if the cache has none."""
    folder = wheel_folder()
    if find_wheel() is None:
        print("  building Horovod 0.28.1 (about five minutes on two cores, once per user)", flush=True)
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
