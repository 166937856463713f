"""What `doctor` tests on the machine: Python, Java, memory, disks, limits, clock, ports, and programs for the tests."""

import importlib.util
import os
import re
import resource
import shlex
import shutil
import stat
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

from scripts import install, jars, prerequisites
from scripts.prerequisites import Missing

MEMORY_GIGABYTES = 6  # Spark takes 3 GB, two training processes about 1 GB each
FREE_GIGABYTES = 2
OPEN_FILES = 1024
OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
CLOCK_SECONDS = 1  # with a larger difference, whether a file is still being written is decided wrongly
SERVER_CLOCK_SECONDS = 300  # S3 rejects signatures that are 15 minutes old


@dataclass(frozen=True)
class Finding:
    """The result of a check: a `warning` works, but should be changed; `skipped` if the part is not in use."""

    state: Literal["ok", "warning", "failed", "skipped"]
    detail: str


@dataclass(frozen=True)
class Check:
    """How a part of the setup is tested, and what to do if the test fails."""

    run: Callable[[], Finding]
    remedy: str


def failed_if(missing: Missing | None, detail: str) -> Finding:
    """Failed with the description of what is missing, else ok with the detail."""
    return Finding("failed", missing.what) if missing else Finding("ok", detail)


def python() -> Finding:
    """Python 3.11, and packages whose versions fit together."""
    if missing := prerequisites.missing_python():
        return Finding("failed", missing.what)
    uv = [sys.executable, "-m", "uv", "pip", "check", "--python", sys.executable]
    pip = [sys.executable, "-m", "pip", "check"]
    command = uv if importlib.util.find_spec("uv") else pip
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (process.stdout + process.stderr).strip().splitlines()
    wrong = [line for line in lines if line.startswith("The package") and not is_for_gpus(line)]
    state = "failed" if wrong or (process.returncode and not any(map(is_for_gpus, lines))) else "ok"
    return Finding(state, "; ".join([f"{sys.version.split()[0]} in {sys.prefix}", *(wrong or lines[:1])]))


def is_for_gpus(line: str) -> bool:
    """Whether a line of `uv pip check` reports that a package is missing which is installed only for GPUs."""
    found = re.search(r"requires `([\w-]+).*not installed", line)
    return found is not None and not prerequisites.has_gpu() and found.group(1) in install.read_groups().get("cuda", ())


def java() -> Finding:
    """The Java that Spark uses."""
    found = prerequisites.find_java()
    return failed_if(prerequisites.missing_java(), f"{prerequisites.java_version(found)} ({found})" if found else "")


def compiler() -> Finding:
    """The C++ compiler, which only Horovod's build needs."""
    missing = prerequisites.missing_compiler()
    if missing and importlib.util.find_spec("horovod"):
        return Finding("skipped", "not needed: Horovod is already installed")
    return failed_if(missing, "compiles C++17 with Python's headers")


def delta_jars() -> Finding:
    """Delta's jars in Spark's folder."""
    folder = jars.spark_home() / "jars"
    if missing := jars.list_missing(folder):
        return Finding("failed", f"{', '.join(missing)}: missing or modified in {folder}")
    return Finding("ok", f"{len(jars.DELTA.jars)} jars in {folder}")


def memory() -> Finding:
    """Enough memory for a training run."""
    import psutil

    total = psutil.virtual_memory().total / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and limit.read_text().strip().isdecimal():
        total = min(total, int(limit.read_text()) / 1e9)
    detail = f"{total:.0f} GB of memory, {MEMORY_GIGABYTES} GB needed"
    return Finding("ok" if total >= MEMORY_GIGABYTES else "failed", detail)


def gpu() -> Finding:
    """NVIDIA GPUs, which are optional."""
    if shutil.which("nvidia-smi") is None:
        return Finding("skipped", "no nvidia-smi: training and predictions run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    process = subprocess.run(query, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        return Finding("failed", f"nvidia-smi: {(process.stdout or process.stderr).strip()}")
    return Finding("ok", "; ".join(process.stdout.strip().splitlines()))


def home() -> Finding:
    """A writable home folder (or nearest existing parent) with enough free space, which others cannot read."""
    from resources.home import require_usable
    from resources.settings import read_settings

    folder = read_settings().home
    existing = existing_part(folder)
    if missing := prerequisites.missing_access(existing):
        return Finding("failed", missing.what)
    require_usable(folder)
    free = shutil.disk_usage(existing).free / 1e9
    note = "" if existing == folder else " (not created yet)"
    detail = f"{folder}{note}, {free:.0f} GB free, {FREE_GIGABYTES} GB needed"
    if free < FREE_GIGABYTES:
        return Finding("failed", detail)
    if existing == folder and folder.stat().st_mode & OF_OTHERS:
        return Finding(
            "warning", f"{detail}; other accounts of this machine can read it: chmod 700 {shlex.quote(str(folder))}"
        )
    return Finding("ok", detail)


def existing_part(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def temporary_files() -> Finding:
    """Enough free space for the temporary files of Spark and training runs."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free / 1e9
    state = "ok" if free >= FREE_GIGABYTES else "failed"
    return Finding(state, f"{folder}, {free:.0f} GB free, {FREE_GIGABYTES} GB needed")


def open_files() -> Finding:
    """How many files a process may open: Spark, Parquet and the servers open hundreds."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = limit == resource.RLIM_INFINITY or limit >= OPEN_FILES
    return Finding("ok" if enough else "failed", f"at most {limit} open files, {OPEN_FILES} needed")


def clock() -> Finding:
    """This machine's clock agrees with the home's file system and with the servers in use."""
    from resources.settings import read_settings

    settings = read_settings()
    folder = existing_part(settings.home)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        offset = abs(Path(file.name).stat().st_mtime - time.time())
    if offset > CLOCK_SECONDS:
        return Finding(
            "failed", f"new files in {folder} are dated {offset:.0f} s off: the file server's clock is wrong"
        )
    for server in filter(None, (os.environ.get("AWS_ENDPOINT_URL"), settings.tracking_uri)):
        if (there := server_time(server)) and (offset := abs(there - time.time())) > SERVER_CLOCK_SECONDS:
            return Finding("failed", f"{offset:.0f} s off the clock of {server}")
    return Finding("ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def server_time(url: str) -> float | None:
    """The time in a server's Date header, in seconds since 1970; None if it does not respond or sends none."""
    if not url.startswith(("http:", "https:")):
        return None
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            date = response.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
    except OSError:  # other checks report unreachable servers
        return None
    return parsedate_to_datetime(date).timestamp() if date else None


def locks() -> Finding:
    """File locks work in the folders of caches and databases; some network file systems lack them."""
    from resources.locks import locked
    from resources.settings import read_settings

    settings = read_settings()
    for folder in {existing_part(settings.home), existing_part(settings.caches)}:
        with locked(folder, wait=False) as first, locked(folder, wait=False) as second:
            if first and second:
                return Finding("failed", f"{folder}: two processes can hold the same lock")
    return Finding("ok", "locks are exclusive")


def ports() -> Finding:
    """The ports of the command `dev`: free, or already used by it."""
    from resources.settings import read_settings
    from scripts.dev import HOST, PORTS, is_up, port

    elsewhere = {"MLFLOW_PORT"} if read_settings().tracking_uri.startswith("http") else set()
    in_use = []
    for variable in PORTS.keys() - elsewhere:
        default, health = PORTS[variable]
        try:
            port(variable)
        except SystemExit as taken:
            if not is_up(f"http://{HOST}:{os.environ.get(variable) or default}{health}"):
                return Finding("failed", str(taken))
            in_use.append(variable)
    return Finding("ok", f"dev is running: {', '.join(in_use)} in use" if in_use else "free")


def chromium() -> Finding:
    """The browser for the tests of web pages."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return Finding("ok", found) if found else Finding("skipped", "only for tests of web pages: apt install chromium")


def postgresql() -> Finding:
    """The database for tests with servers."""
    debian = max((str(program) for program in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
    found = shutil.which("initdb") or debian
    return Finding("ok", found) if found else Finding("skipped", "only for tests with servers: apt install postgresql")
