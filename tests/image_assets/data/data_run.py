"""A run of the data tables on a landing folder, also as a program that is killed at a named point.

`python -m tests.image_assets.data.data_run HOME LANDING POINT`
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from pyspark.sql import DataFrame

from image_assets.data.featured_images import follow_raw_images
from image_assets.data.grayscale_images import TRIMMED, with_gray_content
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder, Listing
from resources.spark_session import spark_session
from resources.tables import Table

POINTS = ("after listing", "after reading", "before the commit", "after the commit", "in a merge", "in a compaction")


def run_data(delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig | None = None) -> None:
    """What the assets raw_images, featured_images and grayscale_images do."""
    ingest(delta_tables, image_folder, config or IngestConfig(), dg.get_dagster_logger())
    follow_raw_images(delta_tables, image_folder)
    delta_tables.follow(FEATURED_IMAGES, TRIMMED, GRAYSCALE_IMAGES, by=with_gray_content)


def contents(delta_tables: DeltaTables) -> dict[str, list[tuple]]:
    """What the tables say, but for times and attempts."""
    columns = {
        IMAGE_FILES: ("path", "state", "reason", "message", "image_id", "length"),
        RAW_IMAGES: ("path", "image_id", "length", "modification_time"),
        FEATURED_IMAGES: ("path", "image_id", "label", "perceptual_hash"),
        GRAYSCALE_IMAGES: ("path", "image_id", "label"),
    }
    return {
        table.name: sorted((tuple(row) for row in delta_tables.read(table).select(*names).collect()), key=str)
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
    """Kill once new data files are closed and nothing of them is committed yet."""
    before = set(folder.glob("*.parquet"))
    commits = len(list((folder / "_delta_log").glob("*.json")))

    def watch() -> None:
        while True:
            new = set(folder.glob("*.parquet")) - before
            if new and all(file.with_name(f".{file.name}.crc").exists() for file in new):
                committed = len(list((folder / "_delta_log").glob("*.json"))) - commits
                os.write(1, b"committed" if committed else b"not committed")
                kill()
            time.sleep(0.001)

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

    def append(self, rows: DataFrame, table: Table, *, transaction: tuple[str, int] | None = None) -> None:
        """Add rows, or end before, while or after they are added."""
        if table is RAW_IMAGES and self.point == "after reading":
            rows.collect()
            kill()
        if table is RAW_IMAGES and self.point == "before the commit":
            kill_when_written(Path(self.uri(table)))
        super().append(rows, table, transaction=transaction)
        if table is RAW_IMAGES and self.point == "after the commit":
            kill()

    def merge(self, rows: DataFrame, table: Table) -> None:
        """Merge rows, or end while they are merged."""
        if self.point == "in a merge":
            kill_when_written(Path(self.uri(table)))
        super().merge(rows, table)


def main(home: str, landing: str, point: str) -> None:
    """Run, and be killed."""
    session = spark_session("local[2]", scratch=f"{home}/spark")
    session.setup_for_execution(dg.build_init_resource_context())
    folder: Callable[..., ImageFolder] = KilledFolder if point == "after listing" else ImageFolder
    tables = KilledTables(pyspark=session, root=f"{home}/tables", checkpoints=f"{home}/checkpoints", point=point)
    run_data(tables, folder(root=landing, settle_seconds=0))
    if point == "in a compaction":
        kill_when_written(Path(tables.uri(RAW_IMAGES)))
        compact_now(tables, RAW_IMAGES)
        time.sleep(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
