"""What the doctor tries of the machine: Python, Java, memory, disks, limits, clock, ports, programs of the tests."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from scripts import jars, prerequisites
from scripts.horovod_wheel import find_wheel
from scripts.prerequisites import Missing

MEMORY_GIGABYTES = 6  # Spark takes 3 GB, two training processes about 1 GB each
FREE_GIGABYTES = 2
OPEN_FILES = 1024
CLOCK_SECONDS = 1  # a file that seems to come from the future, or to be older than it is, is not judged rightly
SERVER_CLOCK_SECONDS = 300  # S3 refuses what is signed 15 minutes ago


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    state: Literal["ok", "failed", "none"]
    detail: str


@dataclass(frozen=True)
class Check:
    """A part of the set-up: how it is tried, and what to do when it fails."""

    try_it: Callable[[], Finding]
    remedy: str


def failed_if(missing: Missing | None, detail: str) -> Finding:
    """Failed with what is missing, or ok with the detail."""
    return Finding("failed", missing.what) if missing else Finding("ok", detail)


def python() -> Finding:
    """Python 3.11, in this project's environment, with packages that fit together."""
    if missing := prerequisites.missing_python():
        return Finding("failed", missing.what)
    command = [sys.executable, "-m", "uv", "pip", "check", "--python", sys.executable]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    detail = answer.stderr.strip().splitlines()[-1] if answer.stderr else ""
    return Finding("failed" if answer.returncode else "ok", f"{sys.version.split()[0]} in {sys.prefix}; {detail}")


def java() -> Finding:
    """The Java that Spark starts."""
    found = prerequisites.find_java()
    return failed_if(prerequisites.missing_java(), f"{prerequisites.java_version(found)} ({found})" if found else "")


def compiler() -> Finding:
    """The C++ compiler, which only Horovod's build needs."""
    missing = prerequisites.missing_compiler()
    if missing and find_wheel():
        return Finding("none", "not needed: Horovod is built already")
    return failed_if(missing, "compiles C++17 with Python's headers")


def delta_jars() -> Finding:
    """Delta's jars beside Spark's."""
    folder = jars.spark_home() / "jars"
    if missing := jars.list_missing(folder):
        return Finding("failed", f"{', '.join(missing)}: missing or changed in {folder}")
    return Finding("ok", f"{len(jars.DELTA.jars)} jars in {folder}")


def memory() -> Finding:
    """Memory, and disk where the home is, for a training."""
    import psutil

    total = psutil.virtual_memory().total / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own
    if limit.is_file() and limit.read_text().strip().isdecimal():
        total = min(total, int(limit.read_text()) / 1e9)
    detail = f"{total:.0f} GB of memory; {MEMORY_GIGABYTES} are needed"
    return Finding("ok" if total >= MEMORY_GIGABYTES else "failed", detail)


def gpu() -> Finding:
    """NVIDIA's GPUs, which nothing here needs."""
    if shutil.which("nvidia-smi") is None:
        return Finding("none", "no nvidia-smi: training and predictions run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return Finding("failed", f"nvidia-smi says {(answer.stdout or answer.stderr).strip()}")
    return Finding("ok", "; ".join(answer.stdout.strip().splitlines()))


def home() -> Finding:
    """The home folder, or the nearest folder above it that exists: can it be written to, is there room?"""
    from resources.settings import read_settings

    wanted = read_settings().home
    existing = existing_part(wanted)
    if missing := prerequisites.missing_access(existing):
        return Finding("failed", missing.what)
    free = shutil.disk_usage(existing).free / 1e9
    made = "" if existing == wanted else " (not made yet)"
    state = "ok" if free >= FREE_GIGABYTES else "failed"
    return Finding(state, f"{wanted}{made}, {free:.0f} GB free; {FREE_GIGABYTES} are needed")


def existing_part(wanted: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(folder for folder in (wanted, *wanted.parents) if folder.exists())


def temporary_files() -> Finding:
    """Room for what Spark and trainings lay aside."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free / 1e9
    return Finding(
        "ok" if free >= FREE_GIGABYTES else "failed", f"{folder}, {free:.0f} GB free; {FREE_GIGABYTES} are needed"
    )


def open_files() -> Finding:
    """How many files a process may have open: Spark, Parquet and the servers have hundreds."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = limit == resource.RLIM_INFINITY or limit >= OPEN_FILES
    return Finding("ok" if enough else "failed", f"{limit} files may be open; {OPEN_FILES} are needed")


def clock() -> Finding:
    """Whether files of the home get the time that this process sees, and servers have about the same."""
    from resources.settings import read_settings

    settings = read_settings()
    folder = existing_part(settings.home)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        off = abs(Path(file.name).stat().st_mtime - time.time())
    if off > CLOCK_SECONDS:
        return Finding(
            "failed", f"a file in {folder} gets a time that is {off:.0f} s off: the file server's clock is wrong"
        )
    for server in filter(None, (os.environ.get("AWS_ENDPOINT_URL"), settings.tracking_uri)):
        if (there := server_time(server)) and (off := abs(there - time.time())) > SERVER_CLOCK_SECONDS:
            return Finding("failed", f"{off:.0f} s off the clock of {server}")
    return Finding("ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def server_time(url: str) -> float | None:
    """What a server says that the time is; None where there is none, or it does not say."""
    if not url.startswith(("http:", "https:")):
        return None
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            said = answer.headers.get("Date")
    except urllib.error.HTTPError as refused:
        said = refused.headers.get("Date")
    except OSError:  # another check tells that it does not answer
        return None
    return parsedate_to_datetime(said).timestamp() if said else None


def locks() -> Finding:
    """Locks of the kernel where caches and databases lie: some network file systems have none."""
    from resources.delta.petastorm_caches import locked
    from resources.settings import read_settings

    settings = read_settings()
    for folder in {existing_part(settings.home), existing_part(settings.caches)}:
        with locked(folder, wait=False) as mine, locked(folder, wait=False) as again:
            if mine and again:
                return Finding("failed", f"{folder}: two may hold the same lock at once")
    return Finding("ok", "a folder's lock has one holder")


def ports() -> Finding:
    """The ports of `make dev`: free, or in use by it."""
    from resources.settings import read_settings
    from scripts.dev import PORTS, answers, port

    elsewhere = {"MLFLOW_PORT"} if read_settings().tracking_uri.startswith("http") else set()
    in_use = []
    for variable in PORTS.keys() - elsewhere:
        default, health = PORTS[variable]
        try:
            port(variable)
        except SystemExit as taken:
            if not answers(f"http://127.0.0.1:{os.environ.get(variable) or default}{health}"):
                return Finding("failed", str(taken))
            in_use.append(variable)
    return Finding("ok", f"make dev runs: {', '.join(in_use)} in use" if in_use else "free")


def chromium() -> Finding:
    """The browser of the gallery's tests."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return (
        Finding("ok", found) if found else Finding("none", "optional, for tests of the gallery: apt install chromium")
    )


def postgresql() -> Finding:
    """The database of tests with servers."""
    debian = max((str(program) for program in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
    found = shutil.which("initdb") or debian
    return (
        Finding("ok", found) if found else Finding("none", "optional, for tests with servers: apt install postgresql")
    )
