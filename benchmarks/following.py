"""Adds a hundred new files to tables of three sizes, up to and including their predictions."""

import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg
from deltalake import DeltaTable

from benchmarks.former import former_root
from benchmarks.homes import data_assets, home_of
from benchmarks.measurement import ALL_CORES, ROOT, Run, measured
from benchmarks.ours import copied_home, materialized, use_home
from benchmarks.parts import timed_parts
from benchmarks.photographs import CACHE, Photographs, landing_of, write
from benchmarks.task import read_task, timed
from benchmarks.versions import tracking_uri_of, version_of, versions_of
from resources.mlflow.model_registry import SERVING_STAGE, ModelRegistry
from scripts.runs import seconds_by_step

NEW = 100
FRAMEWORK = "torch"  # of the version in production
MODULE, RECIPE_MODULE = "benchmarks.following", "benchmarks.recipe_predictions"
FOLLOWERS = (
    "image_files",
    "raw_images",
    "featured_images",
    "grayscale_images",
    "image_splits",
    "image_predictions",
    "current_predictions",
)
WORK = CACHE / "following"


def sizes_up_to(count: int) -> tuple[int, ...]:
    """The table sizes to measure."""
    return (count // 100, count // 10, count)


def following(photographs: Photographs, count: int, repeats: int) -> dict:
    """Runs for a hundred new files at every table size, interleaved, and the recipe's full rebuild for comparison.

    Each new file gets rows in every table from the ledger to `current_predictions`.
    """
    versions = versions_of(photographs)
    promote(ModelRegistry(tracking_uri=tracking_uri_of(versions)))
    roots = {"runs": ROOT} | ({"former": former} if (former := former_root()) else {})
    found: dict[str, dict[str, list[dict]]] = {kind: {} for kind in roots}
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        for kind, root in roots.items():
            for size in sizes_up_to(count):
                home, landing = home_of(photographs, size, root)
                copied_home(home, WORK / kind / str(size))
                prepared = program(landing, WORK / kind / str(size), versions, root)
                print(f"following, {kind}, {size:,} images predicted: {prepared.error or 'prepared'}", flush=True)
        for repeat in range(repeats):
            for size in sizes_up_to(count):
                landing, before = photographs.folder / str(size), size + NEW * repeat
                write(photographs, landing, range(before, before + NEW))
                for kind, root in roots.items():
                    home = WORK / kind / str(size)
                    run = with_all_rows(program(landing, home, versions, root), home, before + NEW)
                    found[kind].setdefault(str(size), []).append(asdict(run))
                    result = run.error or f"{run.answer['work_seconds']:.1f} s"
                    print(
                        f"following {repeat + 1}/{repeats}  {kind}, {NEW} new into {size:,} images: {result}",
                        flush=True,
                    )
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    recomputed = {str(size): recipe_runs(photographs, size, repeats, versions) for size in (count // 10, count // 4)}
    return {"count": count, "new": NEW, **found, "recipe": recomputed}


def promote(registry: ModelRegistry) -> None:
    """Put the version of FRAMEWORK, and no other, in production."""
    serving = version_of(FRAMEWORK, registry).version
    for version in registry.versions():
        registry.promote(version.version, SERVING_STAGE if version.version == serving else "None")


def program(landing: Path, home: Path, versions: Path, root: Path) -> Run:
    """Update a home's tables in a new process."""
    command = [sys.executable, "-m", MODULE, "following", str(landing), str(home), ""]
    return measured(command, {"MLFLOW_TRACKING_URI": tracking_uri_of(versions)} | ALL_CORES, root)


def with_all_rows(run: Run, home: Path, rows: int) -> Run:
    """The run, with an error if a table has another number of rows."""
    found = {table: rows_in(home, table) for table in FOLLOWERS} if not run.error else {}
    if set(found.values()) - {rows}:
        return replace(run, error=f"expected {rows:,} rows in each table: {found}")
    return run


def rows_in(home: Path, table: str) -> int:
    """The number of rows of a table, read without this project's code."""
    return DeltaTable(home / "tables" / table).to_pyarrow_dataset().count_rows()


def recipe_runs(photographs: Photographs, size: int, repeats: int, versions: Path) -> list[dict]:
    """Runs in which the recipe rebuilds the same tables and predicts all images again."""
    landing, target = landing_of(photographs, size), CACHE / "output"
    runs = []
    for repeat in range(repeats):
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", RECIPE_MODULE, "whole_path", str(landing), str(target), FRAMEWORK]
        runs.append(asdict(measured(command, {"MLFLOW_TRACKING_URI": tracking_uri_of(versions)})))
        print(f"following {repeat + 1}/{repeats}  common recipe, {size:,} images: {runs[-1]['answer']}", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    return runs


def main() -> None:
    """Update the tables once, and report the seconds of each step and part."""
    task = read_task()
    home = Path(task.target)
    use_home(home, Path(task.source))
    from image_assets.jobs.asset_jobs import PREDICTIONS

    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance, timed() as figures, timed_parts() as parts:
        result = materialized(data_assets() | PREDICTIONS, instance)
        figures |= {"steps": seconds_by_step(result), "parts": parts}


if __name__ == "__main__":
    main()
