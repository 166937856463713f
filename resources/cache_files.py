"""The files of a cache: rows put in order, divided into row groups, written."""

import errno
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from resources.row_group_files import ROW_GROUP, RowGroupWriter, row_group_count, row_group_numbers
from resources.spark_session import cached

FILE_BYTES = 64 * 1024 * 1024
ROW = "_row"  # a column that tells rows apart while they are written


@dataclass(frozen=True)
class WrittenFiles:
    """How many rows were written, and the size of every file by its name, in the order of their row groups."""

    rows: int
    sizes: dict[str, int]


def row_group_plan(sizes: pd.DataFrame, ranks: int) -> pd.DataFrame:
    """Each row's ROW_GROUP, by its ROW; ValueError when there are fewer rows than ranks.

    A rank without rows would wait for the others for ever.
    """
    if len(sizes) < ranks:
        raise ValueError(
            f"{len(sizes)} images cannot feed {ranks} processes: add images to the landing folder, "
            "or set IMAGE_ASSETS_PROCESSES to a lower number"
        )
    groups = row_group_count(len(sizes), int(sizes["bytes"].sum()), ranks)
    in_order = sizes.sort_values(["image_id", ROW])[[ROW]]
    return in_order.assign(**{ROW_GROUP: row_group_numbers(len(sizes), groups)})


def write_row_groups(rows: DataFrame, folder: Path, *, ranks: int) -> WrittenFiles:
    """Write rows of an `image_id`, a `content` and what else they have; OSError when the disk is full.

    They are put in the order of `image_id`: a hash, so that labels are mixed, and the same order every time.
    """
    spark = rows.sparkSession
    with cached(rows.withColumn(ROW, F.monotonically_increasing_id())) as numbered:
        sizes = numbered.select(ROW, "image_id", F.octet_length("content").alias("bytes")).toPandas()
        plan = row_group_plan(sizes, ranks)
        needed_bytes, free_bytes = int(sizes["bytes"].sum()), shutil.disk_usage(folder).free
        full = no_space(folder.parent, needed_bytes, free_bytes)
        if free_bytes < needed_bytes:
            raise full
        files = max(spark.sparkContext.defaultParallelism, math.ceil(needed_bytes / FILE_BYTES))
        grouped = (
            numbered.join(F.broadcast(spark.createDataFrame(plan)), on=ROW)
            .repartitionByRange(files, ROW_GROUP)
            .sortWithinPartitions(ROW_GROUP, "image_id")
        )
        writer: Any = RowGroupWriter(str(folder), to_arrow_schema(rows.schema))  # pyarrow has no types
        try:
            written = grouped.mapInArrow(writer, "name string, bytes long").collect()
        except PythonException as error:
            if "No space left on device" in str(error):
                raise full from error
            raise
    return WrittenFiles(len(sizes), {file["name"]: file["bytes"] for file in sorted(written)})


def no_space(folder: Path, needed_bytes: int, free_bytes: int) -> OSError:
    """The disk is full, and what to do."""
    return OSError(
        errno.ENOSPC,
        f"no space for a cache: it needs {needed_bytes:,} bytes and more, {free_bytes:,} are free. Delete what is not "
        "needed on this disk, or let caches hold less: set IMAGE_ASSETS_CACHE_CONTENT to jpeg",
        str(folder),
    )
