"""A run of the data tables on a landing folder, also as a program that is killed at a named point.

`python -m tests.support.data_run HOME LANDING POINT`
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
from resources.delta.spark_session import spark_session
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder, Listing

POINTS = ("after listing", "after reading", "before the commit", "after the commit", "in a merge", "in a compaction")


def run_data(delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig | None = None) -> None:
    """What the assets raw_images, featured_images and grayscale_images do."""
    ingest(delta_tables, image_folder, config or IngestConfig(), dg.get_dagster_logger())
    follow_raw_images(delta_tables, image_folder)
    follow_featured_images(delta_tables)


def contents(delta_tables: DeltaTables) -> dict[str, list[tuple]]:
    """What the tables say, but for times and attempts."""
    columns = {
        IMAGE_FILES: ("path", "state", "reason", "message", "image_id", "length"),
        RAW_IMAGES: ("path", "image_id", "length", "modification_time"),
        FEATURED_IMAGES: ("path", "image_id", "label", "perceptual_hash"),
        GRAYSCALE_IMAGES: ("path", "image_id", "label"),
    }
    return {
        table.name: sorted((tuple(row) for row in delta_tables.dataframe(table).select(*names).collect()), key=str)
        for table, names in columns.items()
    }


def compact_now(delta_tables: DeltaTables, table: Table) -> None:
    """Join all small files, whether it pays or not."""
    from delta.tables import DeltaTable

    DeltaTable.forPath(delta_tables.spark, delta_tables.uri(table)).optimize().executeCompaction()


def kill() -> None:
    """End this process and its JVM as a power failure would."""
    os.killpg(0, signal.SIGKILL)


def kill_when_written(folder: Path) -> None:
    """Kill as soon as a new data file is there; what is printed tells whether it was committed already."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.parquet"))
    commits = set(folder.glob("_delta_log/*.json"))

    def watch() -> None:
        while not set(folder.glob("*.parquet")) - before:
            pass
        os.write(1, b"committed" if set(folder.glob("_delta_log/*.json")) - commits else b"not committed")
        kill()

    threading.Thread(target=watch, daemon=True).start()


class KilledFolder(ImageFolder):
    """A folder that is listed once and no more."""

    def list_names(self) -> Listing:
        """The names, and the end."""
        listing = super().list_names()
        len(listing.names)
        kill()
        return listing


class KilledTables(DeltaTables):
    """Tables whose writer ends at the point."""

    point: str

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        """Commit files, or end before or after it."""
        if table is RAW_IMAGES and self.point == "before the commit":
            kill()
        version = super().append_files(table, files, **more)
        if table is RAW_IMAGES and self.point == "after the commit":
            kill()
        return version

    def merge(self, rows: pa.Table, table: Table, **more: Any) -> None:
        """Merge rows, or end while they are merged."""
        if self.point == "in a merge":
            kill_when_written(Path(self.uri(table)))
        super().merge(rows, table, **more)


def main(home: str, landing: str, point: str) -> None:
    """Run, and be killed."""
    session = spark_session("local[2]", scratch=f"{home}/spark")
    session.setup_for_execution(dg.build_init_resource_context())
    folder: Callable[..., ImageFolder] = KilledFolder if point == "after listing" else ImageFolder
    tables = KilledTables(pyspark=session, root=f"{home}/tables", checkpoints=f"{home}/checkpoints", point=point)
    if point == "after reading":
        kill_when_written(Path(tables.uri(RAW_IMAGES)))
    run_data(tables, folder(root=landing, settle_seconds=0))
    if point == "in a compaction":
        kill_when_written(Path(tables.uri(RAW_IMAGES)))
        compact_now(tables, RAW_IMAGES)
        time.sleep(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
