"""Adds a hundred new files to tables of a thousand, ten thousand and a hundred thousand images."""

import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg
from deltalake import DeltaTable

from benchmarks.homes import data_assets, home_of
from benchmarks.measurement import Run, measured
from benchmarks.ours import copied_home, materialized, start_spark, use_home
from benchmarks.parts import timed_parts
from benchmarks.photographs import CACHE, SMALL, landing_of, write
from benchmarks.task import read_task, timed
from scripts.runs import seconds_by_step

NEW = 100
FOLLOWERS = ("image_files", "raw_images", "featured_images", "grayscale_images", "image_splits")


def sizes_up_to(count: int) -> tuple[int, ...]:
    """The table sizes to measure."""
    return (count // 100, count // 10, count)


def following(count: int, repeats: int) -> dict:
    """Runs for a hundred new files at every table size, interleaved, and the recipe's full rebuild for comparison."""
    runs: dict[str, list[dict]] = {}
    for size in sizes_up_to(count):
        home, _ = home_of(SMALL, size)
        shutil.rmtree(copy_of(size), ignore_errors=True)
        copied_home(home, copy_of(size))
    for repeat in range(repeats):
        for size in sizes_up_to(count):
            run = one_run(size, size + NEW * repeat)
            runs.setdefault(str(size), []).append(asdict(run))
            result = run.error or f"{run.answer['work_seconds']:.1f} s"
            print(f"following {repeat + 1}/{repeats}  {NEW} new files into {size:,} images: {result}", flush=True)
    for size in sizes_up_to(count):
        shutil.rmtree(copy_of(size))
    recomputed = {str(size): recipe_runs(size, repeats) for size in (count // 100, count // 20)}
    return {"count": count, "new": NEW, "runs": runs, "recipe": recomputed}


def copy_of(size: int) -> Path:
    """The folder of the copy of a home that the benchmark modifies."""
    return CACHE / "following" / str(size)


def one_run(size: int, before: int) -> Run:
    """Add files to a home's landing folder and update its tables, in a new process."""
    home, landing = copy_of(size), SMALL.folder / str(size)
    write(SMALL, landing, range(before, before + NEW))
    run = measured([sys.executable, "-m", "benchmarks.following", "following", str(landing), str(home), ""])
    found = {table: rows_in(home, table) for table in FOLLOWERS} if not run.error else {}
    if set(found.values()) - {before + NEW}:
        return replace(run, error=f"expected {before + NEW:,} rows in each table: {found}")
    return run


def rows_in(home: Path, table: str) -> int:
    """The number of rows of a table, read without this project's code."""
    return DeltaTable(home / "tables" / table).to_pyarrow_dataset().count_rows()


def recipe_runs(size: int, repeats: int) -> list[dict]:
    """Runs in which the recipe rebuilds the same tables."""
    landing, target = landing_of(SMALL, size), CACHE / "output"
    runs = []
    for repeat in range(repeats):
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.recipe", "whole_path", str(landing), str(target), "pillow"]
        runs.append(asdict(measured(command)))
        print(f"following {repeat + 1}/{repeats}  common recipe, {size:,} images: {runs[-1]['answer']}", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    return runs


def main() -> None:
    """Update the tables once, and report the seconds of each step and part."""
    task = read_task()
    home = Path(task.target)
    use_home(home, Path(task.source))
    start_spark()
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance, timed() as figures, timed_parts() as parts:
        result = materialized(data_assets(), instance)
        figures |= {"steps": seconds_by_step(result), "parts": parts}


if __name__ == "__main__":
    main()
