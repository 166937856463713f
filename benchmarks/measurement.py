"""Runs a program in a separate process and measures its time, CPU time and memory."""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CORES = 2
ALL_CORES = {"OMP_NUM_THREADS": str(CORES)}  # for a program that computes in one process
SAMPLE_SECONDS = 0.2
TIMEOUT_SECONDS = 6 * 3600
GIBIBYTE = 1024**3
# As in this project's training processes: otherwise glibc returns each batch's memory and requests it again.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(GIBIBYTE), "MALLOC_TRIM_THRESHOLD_": str(GIBIBYTE)}


@dataclass(frozen=True)
class Run:
    """The result of one run: `answer` is what the program reported, `error` why it failed."""

    seconds: float
    cpu_seconds: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def to_role(process: psutil.Process, root: int) -> str:
    """The role of a process in the process tree: driver, java or workers."""
    if process.pid == root:
        return "driver"
    return "java" if process.name() == "java" else "workers"


class Watch(threading.Thread):
    """Samples a program's processes several times a second: their peak memory and their CPU time.

    Memory is the sum of the resident memory of all processes, so shared pages count once per process.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended = root, threading.Event()
        self.peak: Counter[str] = Counter()
        self.cpu: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        """Sample until the program has ended."""
        while not self.ended.wait(SAMPLE_SECONDS):
            with suppress(psutil.NoSuchProcess):
                program = psutil.Process(self.root)
                self.sample([program, *program.children(recursive=True)])

    def sample(self, processes: Sequence[psutil.Process]) -> None:
        """Record the current memory, by role and in total, and the CPU time so far."""
        held: Counter[str] = Counter()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                held[to_role(process, self.root)] += process.memory_info().rss
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
        held["together"] = held.total()
        self.peak |= held  # the larger of the two, by role


def environment(answer: str, more: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """The environment of a run: the modules of a checkout, one thread per computing process, and `more`."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    dropped = ("IMAGE_ASSETS_", "PYTHONDONTWRITEBYTECODE")  # the latter would add compiling modules to every start
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    task = {"BENCHMARK_ANSWER": answer, "BENCHMARK_STARTED": str(time.time())}
    return {**inherited, **threads, "PYTHONPATH": str(root), **task, **more}


def on_cores() -> None:
    """Restrict this process and its children to a fixed number of cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def measured(command: Sequence[str], more: Mapping[str, str] | None = None, root: Path = ROOT) -> Run:
    """Run a program of a checkout on CORES cores; it writes its figures to the file named by BENCHMARK_ANSWER."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        with log.open("wb") as output:
            started = time.perf_counter()
            program = subprocess.Popen(
                command,
                cwd=root,
                env=environment(str(answer), more or {}, root),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=on_cores,
            )
            watch = Watch(program.pid)
            watch.start()
            try:
                code = program.wait(TIMEOUT_SECONDS)
            finally:
                program.kill()
                watch.ended.set()
                watch.join()
            seconds = time.perf_counter() - started
        cpu = sum(watch.cpu.values())
        if code or not answer.is_file():
            output_tail = log.read_text(errors="replace").strip().splitlines()[-15:]
            return Run(seconds, cpu, dict(watch.peak), error="\n".join(output_tail) or f"exited with code {code}")
        return Run(seconds, cpu, dict(watch.peak), json.loads(answer.read_text()))
