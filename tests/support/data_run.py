"""Runs of the data tables on a landing folder, also as a program that kills itself at a given point.

`python -m tests.support.data_run HOME LANDING POINT EXECUTOR`
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from image_assets.data.featured_images import follow_raw_images
from image_assets.data.grayscale_images import follow_featured_images
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import WrittenFile
from resources.delta.spark_session import ExecutorName
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder
from resources.files.listing import Listing
from tests.support.small_spark import small_spark

POINTS = ("after listing", "after reading", "before the commit", "after the commit", "in a merge", "in a compaction")


def run_data(delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig | None = None) -> None:
    """Do what the assets raw_images, featured_images and grayscale_images do."""
    ingest(delta_tables, image_folder, config or IngestConfig(), dg.get_dagster_logger())
    follow_raw_images(delta_tables, image_folder)
    follow_featured_images(delta_tables)


def contents(delta_tables: DeltaTables) -> dict[str, list[tuple]]:
    """Return the rows of the tables, without times and attempts."""
    columns = {
        IMAGE_FILES: ("path", "state", "reason", "message", "image_id", "length"),
        RAW_IMAGES: ("path", "image_id", "length", "modification_time"),
        FEATURED_IMAGES: ("path", "image_id", "label", "perceptual_hash"),
        GRAYSCALE_IMAGES: ("path", "image_id", "label"),
    }
    return {
        table.name: sorted((tuple(row.values()) for row in delta_tables.read(table, names).to_pylist()), key=str)
        for table, names in columns.items()
    }


def compact_now(delta_tables: DeltaTables, table: Table) -> None:
    """Compact a table regardless of its number of small files."""
    from delta.tables import DeltaTable

    DeltaTable.forPath(delta_tables.spark, delta_tables.uri(table)).optimize().executeCompaction()


def kill() -> None:
    """Kill this process and its JVM, as a power failure would."""
    os.killpg(0, signal.SIGKILL)


def kill_when_written(folder: Path) -> None:
    """Kill this process as soon as there is a new data file, and print whether it was committed."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.parquet"))
    commits = set(folder.glob("_delta_log/*.json"))

    def watch() -> None:
        while not set(folder.glob("*.parquet")) - before:
            time.sleep(0.0005)  # without a pause, this thread takes the interpreter from the run
        os.write(1, b"committed" if set(folder.glob("_delta_log/*.json")) - commits else b"not committed")
        kill()

    threading.Thread(target=watch, daemon=True).start()


class KilledFolder(ImageFolder):
    """A folder that kills the process after it was listed."""

    def list_names(self) -> Listing:
        """List the names, then kill the process."""
        listing = super().list_names()
        len(listing.names)
        kill()
        return listing


class KilledTables(DeltaTables):
    """Tables that kill the process at the point."""

    point: str

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        """Commit files, or kill the process before or after."""
        if table is RAW_IMAGES and self.point == "before the commit":
            kill()
        version = super().append_files(table, files, **more)
        if table is RAW_IMAGES and self.point == "after the commit":
            kill()
        return version

    def merge(self, rows: pa.Table, table: Table, **more: Any) -> None:
        """Merge rows, or kill the process meanwhile."""
        if self.point == "in a merge":
            kill_when_written(Path(self.uri(table)))
        super().merge(rows, table, **more)


def main(home: str, landing: str, point: str, executor: ExecutorName) -> None:
    """Run the tables and kill the process at the point."""
    session = small_spark(f"{home}/spark", executor=executor)
    folder: Callable[..., ImageFolder] = KilledFolder if point == "after listing" else ImageFolder
    tables = KilledTables(pyspark=session, root=f"{home}/tables", point=point)
    if point == "after reading":
        kill_when_written(Path(tables.uri(RAW_IMAGES)))
    run_data(tables, folder(root=landing, settle_seconds=0))
    if point == "in a compaction":
        kill_when_written(Path(tables.uri(RAW_IMAGES)))
        compact_now(tables, RAW_IMAGES)
        time.sleep(5)


if __name__ == "__main__":
    main(*sys.argv[1:])  # pyright: ignore[reportArgumentType] - the fourth is a choice
