"""What the machine must provide, and the commands that install what is missing.

Standard library and old syntax only, because any Python 3 must get far enough to report that it is the wrong version.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

JAVA_VERSIONS = (17, 21)
DISK_GIGABYTES = 12
MANAGERS = {
    "apt-get": "sudo apt-get install",
    "dnf": "sudo dnf install",
    "brew": "brew install",
}


@dataclass(frozen=True)
class Missing:
    """Something the machine lacks: what was expected and found, and what to do about it."""

    what: str
    packages: tuple[str, str, str] | None = None  # for apt-get, dnf and brew
    remedy: str = ""


def missing_system(platform: str = sys.platform) -> Missing | None:
    """Linux: some pinned packages exist for no other system."""
    if platform == "linux":
        return None
    name = {"darwin": "macOS", "win32": "Windows"}.get(platform, platform)
    remedy = (
        "Some of the pinned packages exist for Linux only. Use a Linux machine, a virtual machine or a container; "
        "on Windows, WSL 2."
    )
    return Missing(f"Linux: this is {name}", remedy=remedy)


def find_java() -> str | None:
    """The `java` that Spark uses: the one in JAVA_HOME, else the first on the PATH."""
    home = os.environ.get("JAVA_HOME")
    if home:
        return shutil.which(str(Path(home) / "bin" / "java"))
    return shutil.which("java")


def java_version(java: str) -> str:
    """The version of this `java`; empty if it does not run."""
    process = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "([^"]+)"', process.stderr + process.stdout)
    return found.group(1) if found else ""


def missing_java() -> Missing | None:
    """Java 17 or 21, for Spark 4.0."""
    java = find_java()
    packages = ("openjdk-17-jre-headless", "java-21-openjdk-headless", "openjdk@21")
    if java is None:
        where = f"JAVA_HOME={os.environ['JAVA_HOME']}" if os.environ.get("JAVA_HOME") else "the PATH"
        return Missing(f"Java 17 or 21: no java in {where}", packages)
    version = java_version(java)
    if version.split(".")[0] in map(str, JAVA_VERSIONS):
        return None
    remedy = "If a Java 17 or 21 is already installed, point JAVA_HOME at it."
    return Missing(f"Java 17 or 21: {java} is {version or 'not a working Java'}", packages, remedy)


def missing_python() -> Missing | None:
    """Python 3.11 that can create virtual environments."""
    packages = ("python3.11 python3.11-venv python3.11-dev", "python3.11 python3.11-devel", "python@3.11")
    remedy = "If a Python 3.11 is installed but not on the PATH: make install PYTHON=<path>"
    if sys.version_info[:2] != (3, 11):
        return Missing(f"Python 3.11: {sys.executable} is {sys.version.split()[0]}", packages, remedy)
    if importlib.util.find_spec("ensurepip") is None:
        return Missing(f"Python's venv: {sys.executable} has no ensurepip", packages, remedy)
    return None


def missing_compiler() -> Missing | None:
    """A compiler for C++17, with its standard library and Python's headers, and make, which runs it."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    packages = ("g++ make python3.11-dev", "gcc-c++ make python3.11-devel", "gcc make")
    if compiler is None:
        return Missing("C++ compiler (to build Horovod): no g++ on the PATH, and CXX is not set to one", packages)
    if shutil.which("make") is None:
        return Missing("make (to build Horovod): not on the PATH", packages)
    source = "#include <optional>\n#include <Python.h>\nint main() {}\n"
    include = f"-I{sysconfig.get_path('include')}"
    command = [compiler, "-std=c++17", "-fsyntax-only", include, "-x", "c++", "-"]
    process = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if process.returncode == 0:
        return None
    error = next((line for line in process.stderr.splitlines() if "error" in line), f"exit code {process.returncode}")
    return Missing(f"C++17 compiler with Python's headers: {compiler} reports {error.strip()}", packages)


def missing_disk(folder: Path) -> Missing | None:
    """Disk space for the packages, mostly torch and TensorFlow."""
    free = shutil.disk_usage(folder).free / 1e9
    if free >= DISK_GIGABYTES:
        return None
    return Missing(f"disk space: {free:.1f} GB free in {folder}, {DISK_GIGABYTES} GB needed", remedy="Free some space.")


def has_gpu() -> bool:
    """Whether to install what only a GPU needs: as CUDA says, else if there is an NVIDIA driver."""
    choice = os.environ.get("CUDA") or "auto"
    if choice not in ("auto", "yes", "no"):
        raise SystemExit(f"CUDA is {choice!r}: expected yes, no or auto (which looks for nvidia-smi)")
    return shutil.which("nvidia-smi") is not None if choice == "auto" else choice == "yes"


def missing_access(folder: Path) -> Missing | None:
    """Write access to a folder, tested by writing, because permissions are not the only obstacle."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        remedy = "Get write access to it, or use another folder (for caches: set XDG_CACHE_HOME)."
        return Missing(f"a writable folder: {folder} is not ({error.strerror})", remedy=remedy)


def to_message(missing: list[Missing]) -> str:
    """Everything that is missing, with the commands that install it."""
    lines = ["Missing on this machine:", *(f"  - {one.what}" for one in missing)]
    packages = [one.packages for one in missing if one.packages]
    if packages:
        managers = [manager for manager in MANAGERS if shutil.which(manager)] or list(MANAGERS)
        lines.append("To install it:")
        for manager in managers:
            names = dict.fromkeys(" ".join(names[list(MANAGERS).index(manager)] for names in packages).split())
            lines.append(f"    {MANAGERS[manager]} {' '.join(names)}")
    lines += [f"  {one.remedy}" for one in missing if one.remedy]
    return "\n".join(lines)
