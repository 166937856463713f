"""One run of a program in a process of its own: how long it took, how much memory its processes held."""

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
SAMPLE_SECONDS = 0.2
TIMEOUT_SECONDS = 6 * 3600
GIBIBYTE = 1024**3


@dataclass(frozen=True)
class Run:
    """What one run came to; `answer` is what the program itself said, `error` why it did not get there."""

    seconds: float
    cpu_seconds: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def to_role(process: psutil.Process, root: int) -> str:
    """What a process of the tree is there for."""
    if process.pid == root:
        return "driver"
    return "java" if process.name() == "java" else "workers"


class Watch(threading.Thread):
    """A program's processes, looked at a few times a second: the most memory they held, the processor time they took.

    Pages that processes share count for each of them.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended = root, threading.Event()
        self.peak: Counter[str] = Counter()
        self.cpu: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        """Look until the program has ended."""
        while not self.ended.wait(SAMPLE_SECONDS):
            with suppress(psutil.NoSuchProcess):
                program = psutil.Process(self.root)
                self.look([program, *program.children(recursive=True)])

    def look(self, processes: Sequence[psutil.Process]) -> None:
        """Note what the processes hold now, by role and together, and how much they have computed so far."""
        held: Counter[str] = Counter()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                held[to_role(process, self.root)] += process.memory_info().rss
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
        held["together"] = held.total()
        self.peak |= held  # the larger of the two, by role


def environment(answer: str, more: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run: this folder's modules, one thread for each process that computes."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    dropped = ("IMAGE_ASSETS_", "PYTHONDONTWRITEBYTECODE")  # modules compiled at every start are no figure of anybody
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    told = {"BENCHMARK_ANSWER": answer, "BENCHMARK_STARTED": str(time.time())}
    return {**kept, **threads, "PYTHONPATH": str(ROOT), **told, **more}


def on_cores() -> None:
    """Let this process, and all that it starts, use a fixed number of cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def measured(command: Sequence[str], more: Mapping[str, str] | None = None) -> Run:
    """Run a program to its end on CORES cores; it writes what it has to say to the file in BENCHMARK_ANSWER."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        with log.open("wb") as output:
            started = time.perf_counter()
            program = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(str(answer), more or {}),
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
            said = log.read_text(errors="replace").strip().splitlines()[-15:]
            return Run(seconds, cpu, dict(watch.peak), error="\n".join(said) or f"ended with {code}")
        return Run(seconds, cpu, dict(watch.peak), json.loads(answer.read_text()))
