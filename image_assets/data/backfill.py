"""Fills in the columns of featured_images that rows of earlier releases lack."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial

import dagster as dg
import pyarrow.compute as pc

from image_assets.data.ingestion import to_limits
from image_assets.data.inspection import decode_features
from image_assets.images.features import Features
from image_assets.images.isolated_process import GuardedProcess
from image_assets.images.large_images import Limits
from image_assets.images.metadata import CameraData
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import DataFile, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.delta.following import BATCH_BYTES
from resources.delta.local_tasks import counted
from resources.delta.new_rows import NewRows
from resources.delta.writing import writing_tasks
from resources.files.image_folder import ImageFolder

FILLED = (
    *("pages", "black_value", "white_value", "hashes", "thumbnail"),
    *(field.name for field in fields(CameraData)),
)
READ = ("path", "image_id", "length", "content")
NO_PAGES = {"pages": 0}  # of an image whose file is gone: not null, so that it is not tried again


def backfill(delta_tables: DeltaTables, image_folder: ImageFolder) -> int:
    """Fills in FILLED in the rows without `pages`, and returns how many there were.

    Each commit rewrites files of about BATCH_BYTES. A run that is killed in between is continued by the next one.
    """
    lacking = delta_tables.read_keys(FEATURED_IMAGES, pc.field("pages").is_null())
    if not lacking:
        return 0
    dg.get_dagster_logger().info(
        f"{len(lacking):,} images are from an earlier release: {', '.join(FILLED)} are filled in from their content"
    )
    delta_tables.create(FEATURED_IMAGES)
    for files in batches(table_files(delta_tables.uri(FEATURED_IMAGES)).files, BATCH_BYTES):
        new = NewRows(
            tuple(file.url for file in files),
            None,
            FEATURED_IMAGES.keys,
            wanted=lacking,
            size_bytes=sum(file.size_bytes for file in files),
        )
        if rows := filled_rows(delta_tables, new, to_limits(image_folder)):
            delta_tables.update(rows, FEATURED_IMAGES, FILLED)
    return len(lacking)


def batches(files: Sequence[DataFile], size_bytes: int) -> Iterator[list[DataFile]]:
    """The files in lists of about this size, one file at least."""
    batch: list[DataFile] = []
    for file in files:
        batch.append(file)
        if sum(of.size_bytes for of in batch) >= size_bytes:
            yield batch
            batch = []
    if batch:
        yield batch


def filled_rows(delta_tables: DeltaTables, new: NewRows, limits: Limits) -> list[Row]:
    """The keys and the values of FILLED of rows, computed by tasks from their content or file."""
    executor = executor_for(delta_tables.pyspark, new.size_bytes)
    tasks = executor.task_count(writing_tasks(new))
    decode = partial(decode_features, reading=limits.reading)

    def fill(parts: Iterable[int]) -> Iterator[Row]:
        with GuardedProcess(decode, memory_bytes=limits.memory_bytes) as guarded:
            for image in counted(image for part in parts for image in new.rows(READ, part, tasks)):
                found = guarded.run(image, cpu_seconds=limits.seconds_for(image["length"]))
                values = vars(found) if isinstance(found, Features) else NO_PAGES
                keys = {name: image[name] for name in FEATURED_IMAGES.keys}
                yield keys | {name: values.get(name) for name in FILLED}

    return executor.run(fill, range(tasks))
