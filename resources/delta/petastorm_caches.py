"""Petastorm caches: written once, found again by name (workers open them by URL)."""

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dagster as dg
import pandas as pd
from pydantic import Field
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from resources.delta.row_groups import ROW_GROUP, Color, Content, RowGroupWriter, row_group_count, row_group_numbers
from resources.delta.spark_session import cached

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


@contextmanager
def locked(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold the folder for oneself, or shared with others; whether that succeeded, which it does for whoever waits.

    The lock is on the folder itself: it stays when the folder is renamed, and goes with the process, however it ends.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            acquired = True
        except BlockingIOError:
            acquired = False
        yield acquired
    finally:
        os.close(descriptor)


if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

MEGABYTE = 1024 * 1024
MANIFEST = "_cache.json"  # a folder without it is no cache
UNFINISHED = ".unfinished-"  # how the folders begin of caches that are being written or deleted


@dataclass(frozen=True)
class Cache:
    """Rows as training workers read them: Parquet files in one folder."""

    name: str
    url: str
    rows: int
    files: tuple[str, ...]
    content: Content
    color: Color

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(Path(file.removeprefix("file://")).stat().st_size for file in self.files)

    def converter(self) -> "SparkDatasetConverter":
        """The cache in Petastorm's hands: makes TensorFlow datasets and torch loaders, also in other processes."""
        from petastorm.spark import SparkDatasetConverter

        return SparkDatasetConverter(self.url, list(self.files), self.rows)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While it is open, in any process of this machine, the cache is not evicted.

        FileNotFoundError when it was evicted, or cut, since it was found.
        """
        folder = Path(self.url.removeprefix("file://"))
        gone = FileNotFoundError(f"the cache {folder} is no longer whole: materialize it again")
        if not folder.is_dir():
            raise gone
        with locked(folder, shared=True):
            if read_cache(folder) != self:
                raise gone
            yield


def read_cache(folder: Path) -> Cache | None:
    """The cache in a folder, if all of it is there; asking for it counts as a use."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    written = json.loads(manifest.read_text())
    files = [folder / name for name in written["files"]]
    if any(not file.is_file() or file.stat().st_size != written["files"][file.name] for file in files):
        return None
    now = time.time_ns()  # finer than what the kernel would put: two uses may be within a few milliseconds
    os.utime(folder, ns=(now, now))
    urls = tuple(map(to_url, files))
    return Cache(folder.name, to_url(folder), written["rows"], urls, written["content"], written["color"])


def to_url(path: Path) -> str:
    """The path as Hadoop and Petastorm take it: as it is, not percent-encoded."""
    return f"file://{path}"


UNNAMED_SIDE_PIXELS = 224  # the side of images in caches whose names do not depend on it


class PetastormCaches(dg.ConfigurableResource):
    """The caches of one home, each a folder named by what went into it: its split, a hyphen, and the rest."""

    root: str
    content: Content = Field(default="original", description="What new caches hold of an image.")
    color: Color = Field(default="rgb", description="Whether they hold the images, or the images in gray.")
    side_pixels: int = Field(
        default=UNNAMED_SIDE_PIXELS,
        gt=0,
        description="Width and height that images are scaled to, unless caches hold the original files.",
    )
    keep: int = Field(default=3, ge=1, description="How many caches of each split are kept.")
    keep_megabytes: float = Field(default=16384, gt=0, description="How large all caches together may be.")

    def checkpoints(self, training: str) -> str:
        """The folder of a training's checkpoints, which its ranks see as they see the caches."""
        return f"{self.root}/.trainings/{training}"

    def find(self, name: str) -> Cache | None:
        """The cache of that name, if it was written to the end and is still whole."""
        return read_cache(Path(self.root) / name)

    def write(self, rows: DataFrame, name: str, *, ranks: int) -> Cache:
        """Write rows under a name, with some row groups for every rank; see `write_row_groups`.

        The rows hold of an image what `content` and `color` say. Nobody finds the cache before all of it is there.
        """
        root = Path(self.root)
        with self._unfinished() as folder:
            written = write_row_groups(rows, folder, ranks=ranks)
            manifest = {"rows": written.rows, "files": written.sizes, "content": self.content, "color": self.color}
            (folder / MANIFEST).write_text(json.dumps(manifest))
            with locked(root):
                self._delete(root / name)
                folder.rename(root / name)
        cache = self.find(name)
        if cache is None:
            raise OSError(f"the cache {name} was written to {root} and cannot be found again")
        return cache

    def evict(self) -> list[str]:
        """Delete caches beyond the limits, those first that were not used for longest; their names.

        The last one used of each split stays: a training asks for one of each. So does a cache that is in use. What
        trainings keep here of a backbone's embeddings is treated like a cache of a split of its own.
        """
        with locked(Path(self.root)):
            folders = [folder for folder in Path(self.root).glob("[!.]*") if folder.is_dir()]
            oldest_first = sorted(folders, key=lambda folder: folder.stat().st_mtime)
            last_used = {split_of(folder): folder for folder in oldest_first}
            numbers = Counter(map(split_of, folders))
            sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
            evicted = []
            for folder in oldest_first:
                too_many = numbers[split_of(folder)] > self.keep
                too_large = sum(sizes.values()) > self.keep_megabytes * MEGABYTE
                if (too_many or too_large) and folder not in last_used.values() and self._delete_unused(folder):
                    evicted.append(folder.name)
                    numbers[split_of(folder)] -= 1
                    del sizes[folder]
        return evicted

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder to write a cache in, which nobody finds; what is left of it afterwards is deleted."""
        root = Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with locked(root):  # no other process may take the folder for a killed one's before it is locked
                self._delete_leftovers()
                folder = root / f"{UNFINISHED}{uuid4()}"
                folder.mkdir()
                held.enter_context(locked(folder))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _delete_leftovers(self) -> None:
        """Delete what killed processes left."""
        for folder in Path(self.root).glob(f"{UNFINISHED}*"):
            self._delete_unused(folder)

    def _delete_unused(self, folder: Path) -> bool:
        """Delete a folder unless somebody holds it; whether that was done."""
        with locked(folder, wait=False) as unused:
            if unused:
                self._delete(folder)
        return unused

    def _delete(self, folder: Path) -> None:
        """Delete a cache, if it is there, so that nobody finds a part of it."""
        if folder.is_dir():
            shutil.rmtree(folder.rename(folder.with_name(f"{UNFINISHED}{uuid4()}")))


def split_of(folder: Path) -> str:
    """The split that a cache's name begins with."""
    return folder.name.partition("-")[0]
