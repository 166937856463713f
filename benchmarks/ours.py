"""This project as a contestant: its assets, materialized in a home."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from benchmarks.parts import timed_parts
from benchmarks.recipe import start_workers
from benchmarks.task import Task, read_task, timed
from resources.home import stamp

if TYPE_CHECKING:
    from resources.delta.spark_session import DeltaSpark

TARGETS = {
    "ingest": ("image_files", "replayed_files", "raw_images"),  # one step writes all three
    "featured": ("featured_images",),
    "grayscale": ("grayscale_images",),
}


def copied_home(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copy a home so that it can be modified; its Parquet files, which are never modified, are hard links."""

    def copy(file: str, to: str) -> None:
        if file.endswith(".parquet") and "_delta_log" not in file:
            os.link(file, to)
        else:
            shutil.copy2(file, to)

    shutil.copytree(source, target, copy_function=copy, ignore=lambda _, names: set(without) & set(names))
    stamp(target)  # it may use the original's files: they are only read


def use_home(home: Path, landing: Path) -> None:
    """Make definitions that are loaded later use this home."""
    os.environ |= {
        "IMAGE_ASSETS_HOME": str(home),
        "IMAGE_ASSETS_LANDING": str(landing),
        "IMAGE_ASSETS_SPARK_MASTER": "local[2]",
    }


def start_spark(size_bytes: int | None = None) -> None:
    """Start the Spark session before the clock does, unless work of this size does without it."""
    from definitions import resources
    from resources.delta.executors import runs_locally

    pyspark = cast("DeltaSpark", resources["pyspark"])
    if size_bytes is None or not runs_locally(pyspark, size_bytes):
        start_workers(pyspark.spark_session)


def bytes_in(landing: Path) -> int:
    """The size of all photographs in a landing folder."""
    return sum(file.stat().st_size for file in landing.rglob("*.jpg"))


def materialized(
    selection: dg.AssetSelection, instance: dg.DagsterInstance, run_config: dict[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    """Materialize some of the assets in one Dagster run, with the project's resources."""
    from definitions import defs, resources

    everything = [*(defs.assets or ()), *(defs.asset_checks or ())]
    return dg.materialize(
        everything, selection=selection, resources=resources, instance=instance, run_config=run_config
    )


def prepare(task: Task) -> Path:
    """Set up the home: an empty one for a landing folder, otherwise a copy of one without the tables to build.

    Returns:
        The landing folder.
    """
    source, target = Path(task.source), Path(task.target)
    if task.benchmark == "ingest":
        landing = source
    else:
        copied_home(source, target, without=TARGETS[task.benchmark])
        landing = Path((source / "landing_folder").read_text().strip())
    use_home(target, landing)
    return landing


def main() -> None:
    """Run the task."""
    task = read_task()
    start_spark(bytes_in(prepare(task)))
    selection = dg.AssetSelection.assets(*TARGETS[task.benchmark]).without_checks()
    with dg.DagsterInstance.ephemeral() as instance, timed() as figures, timed_parts() as parts:
        materialized(selection, instance)
        figures["parts"] = parts


if __name__ == "__main__":
    main()
