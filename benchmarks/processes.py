"""Compares one Horovod process with two on the same cores, and a rank's memory at two table sizes."""

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import psutil

from benchmarks.homes import home_of
from benchmarks.measurement import Run, measured
from benchmarks.ours import copied_home, materialized, start_spark, use_home
from benchmarks.photographs import CACHE, SMALL
from benchmarks.recipe_training import BACKBONE
from benchmarks.task import read_task, timed

LOOK_SECONDS = 0.2
MODEL = "torch_model"
PROCESSES = (1, 2)


def processes(count: int, repeats: int) -> dict:
    """Train with one process and with two, on tables with a tenth of `count` images and with all of them."""
    runs: dict[str, dict[str, list[dict]]] = {str(number): {} for number in PROCESSES}
    for repeat in range(repeats):
        for size in (count // 10, count):
            for number in PROCESSES:
                run = one_run(size, number)
                runs[str(number)].setdefault(str(size), []).append(asdict(run))
                print(
                    f"processes {repeat + 1}/{repeats}  {number} processes, {size:,} images: {run.error or run.answer}",
                    flush=True,
                )
    return {"count": count, "runs": runs}


def one_run(size: int, number: int) -> Run:
    """One training in a copy of a home, with `number` Horovod processes."""
    home, _ = home_of(SMALL, size)
    target = CACHE / "processes"
    shutil.rmtree(target, ignore_errors=True)
    copied_home(home, target)
    variables = {name: os.environ[name] for name in (BACKBONE,) if name in os.environ}
    try:
        command = [sys.executable, "-m", "benchmarks.processes", "processes", "", str(target), str(number)]
        return measured(command, {**variables, "IMAGE_ASSETS_PROCESSES": str(number)})
    finally:
        shutil.rmtree(target, ignore_errors=True)


def anonymous_bytes(process: int) -> int:
    """A process's anonymous memory, which no file backs; 0 if it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(kilobytes[1]) if kilobytes else 0


@contextmanager
def watched_ranks() -> Iterator[dict[str, int]]:
    """Track the peak anonymous memory of any Python process below this one.

    File-backed pages do not count, because the kernel drops them when it needs memory. Spark's Python workers do not
    matter: they are far smaller than a rank.
    """
    most = {"bytes": 0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    if process.name().startswith("python"):
                        most["bytes"] = max(most["bytes"], anonymous_bytes(process.pid))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield most
    finally:
        ended.set()
        watch.join()


def figures_of(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """A training's figures from its metadata."""
    (materialization,) = result.asset_materializations_for_node(MODEL)
    names = ("embedded_images_per_second", "processes", "validation_accuracy")
    return {name: float(str(materialization.metadata[name].value)) for name in names}


def main() -> None:
    """Write the caches, then train while the ranks' memory is tracked."""
    from image_assets.jobs.asset_jobs import CACHES

    task = read_task()
    home = Path(task.target)
    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        materialized(CACHES.without_checks(), instance)
        with timed() as figures, watched_ranks() as most:
            figures |= figures_of(materialized(dg.AssetSelection.assets(MODEL).without_checks(), instance))
            figures["rank_bytes"] = most["bytes"]


if __name__ == "__main__":
    main()
