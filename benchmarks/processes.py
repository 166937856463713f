"""One Horovod process against two on the same cores, and the memory that a rank holds as tables grow."""

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
    """Trainings by one process and by two, on tables of a tenth of so many images and on so many."""
    runs: dict[str, dict[str, list[dict]]] = {str(number): {} for number in PROCESSES}
    for repeat in range(repeats):
        for size in (count // 10, count):
            for number in PROCESSES:
                run = one_run(size, number)
                runs[str(number)].setdefault(str(size), []).append(asdict(run))
                print(
                    f"processes {repeat + 1}/{repeats}  {number}, {size:,} images: {run.error or run.answer}",
                    flush=True,
                )
    return {"count": count, "runs": runs}


def one_run(size: int, number: int) -> Run:
    """One training in a copy of a home, by so many Horovod processes."""
    home, _ = home_of(SMALL, size)
    target = CACHE / "processes"
    shutil.rmtree(target, ignore_errors=True)
    copied_home(home, target)
    asked = {name: os.environ[name] for name in (BACKBONE,) if name in os.environ}
    try:
        command = [sys.executable, "-m", "benchmarks.processes", "processes", "", str(target), str(number)]
        return measured(command, {**asked, "IMAGE_ASSETS_PROCESSES": str(number)})
    finally:
        shutil.rmtree(target, ignore_errors=True)


def anonymous_bytes(process: int) -> int:
    """The memory of a process that no file stands behind; none of one that has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(kilobytes[1]) if kilobytes else 0


@contextmanager
def watched_ranks() -> Iterator[dict[str, int]]:
    """While it is open: the most anonymous memory that any Python process below this one held.

    Pages of files, which the kernel drops when it needs room, do not count. Spark's Python workers are far smaller than
    a rank.
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
    """What a training told of itself."""
    (told,) = result.asset_materializations_for_node(MODEL)
    names = ("embedded_images_per_second", "processes", "validation_accuracy")
    return {name: float(str(told.metadata[name].value)) for name in names}


def main() -> None:
    """Write the caches, train, and look at the ranks meanwhile."""
    from image_assets.jobs.asset_jobs import CACHES

    task = read_task()
    home = Path(task.target)
    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        materialized(CACHES.without_checks(), instance)
        with timed() as told, watched_ranks() as most:
            told |= figures_of(materialized(dg.AssetSelection.assets(MODEL).without_checks(), instance))
            told["rank_bytes"] = most["bytes"]


if __name__ == "__main__":
    main()
