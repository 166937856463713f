"""Petastorm caches: written once, found by name, opened by URL in training workers."""

import errno
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from resources.delta.arrow_rows import Row
from resources.delta.executors import Executor
from resources.delta.local_tasks import counted
from resources.delta.row_groups import (
    MEBIBYTE,
    ROW_GROUP,
    Color,
    Content,
    Page,
    RowGroupWriter,
    row_group_count,
    row_group_numbers,
)
from resources.delta.spark_session import cached
from resources.files.replacing import replace_text
from resources.locks import locked
from resources.progress import ProgressLine

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

FILE_BYTES = 64 * 1024 * 1024
ROW = "_row"  # a temporary column that identifies a row

MANIFEST = "_cache.json"  # a folder without it is not a cache
UNFINISHED = ".unfinished-"  # the prefix of folders that are being written or deleted
CHECKPOINT_SECONDS = 30 * 24 * 3600  # after which nobody resumes a training
# Folders of earlier releases; now image_embeddings has them.
FORMER_EMBEDDINGS = re.compile(r"(tensorflow|torch)-[0-9a-f]{16}")


@dataclass(frozen=True)
class WrittenFiles:
    """The number of written rows, and the size of every file by name, in the order of their row groups."""

    rows: int
    sizes: dict[str, int]


def row_group_plan(sizes: pd.DataFrame, ranks: int) -> pd.DataFrame:
    """Each row's ROW_GROUP, by its ROW.

    Raises:
        ValueError: There are fewer rows than ranks; a rank without rows would block the others.
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
    """Write rows with `image_id`, `content` and any other columns.

    The order is that of `image_id`, a hash: labels are mixed, and the order is the same every time.

    Raises:
        OSError: The disk is full.
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


@dataclass(frozen=True)
class LocalRows:
    """Rows with `image_id`, `content` and any other columns, which threads of this process read.

    Attributes:
        read: The rows of one of several parts, by its number and the number of parts.
        count: How many rows all parts have.
        schema: The columns.
        executor: What reads the parts.
        progress: The line that counts the rows; an open one.
    """

    read: Callable[[int, int], Iterable[Row]]
    count: int
    schema: pa.Schema
    executor: Executor
    progress: ProgressLine


class Place(NamedTuple):
    """Where a row's content is in an open temporary file, by the file's descriptor."""

    file: int
    offset: int
    length: int

    def read(self) -> bytes:
        """The content."""
        return os.pread(self.file, self.length, self.offset)


def write_local_row_groups(rows: LocalRows, folder: Path, *, ranks: int) -> WrittenFiles:
    """The same as `write_row_groups`, without Spark.

    The contents are not held in memory: threads write them to temporary files, from which they are read in the order
    of the row groups.
    """
    parts = rows.executor.task_count(1)
    free_bytes = shutil.disk_usage(folder).free
    with ExitStack() as stack:
        spills = [stack.enter_context(TemporaryFile(dir=folder)) for _ in range(parts)]

        def spill(numbers: Iterable[int]) -> Iterator[list[Row]]:
            for number in numbers:
                file = spills[number]
                yield [
                    {**row, "content": Place(file.fileno(), file.tell(), file.write(row["content"]))}
                    for row in counted(rows.read(number, parts))
                ]
                file.flush()

        try:
            done = rows.executor.run(spill, range(parts), rows.progress, rows=rows.count)
            found = [row for part in done for row in part]
            lengths = [row["content"].length for row in found]
            sizes = pd.DataFrame({ROW: range(len(found)), "image_id": [row["image_id"] for row in found]})
            plan = row_group_plan(sizes.assign(bytes=lengths), ranks)
            per_file = math.ceil((plan[ROW_GROUP].max() + 1) / max(1, math.ceil(sum(lengths) / FILE_BYTES)))
            writer = RowGroupWriter(str(folder), rows.schema)
            written: dict[str, int] = {}
            for _, in_file in plan.groupby(plan[ROW_GROUP] // per_file):
                in_order = zip(in_file[ROW], in_file[ROW_GROUP], strict=True)
                written |= writer.write(
                    {**found[row], "content": found[row]["content"].read(), ROW_GROUP: group} for row, group in in_order
                )
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            written_bytes = sum(os.fstat(file.fileno()).st_size for file in spills)
            raise no_space(folder.parent, max(free_bytes, written_bytes), free_bytes) from error
    return WrittenFiles(len(found), written)


def no_space(folder: Path, needed_bytes: int, free_bytes: int) -> OSError:
    """The error for a full disk, with a remedy."""
    return OSError(
        errno.ENOSPC,
        f"no space for a cache: it needs more than {needed_bytes:,} bytes, but only {free_bytes:,} are free. Free disk "
        "space, or make caches smaller by setting IMAGE_ASSETS_CACHE_CONTENT to jpeg",
        str(folder),
    )


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
        """The size of all files."""
        return sum(Path(file.removeprefix("file://")).stat().st_size for file in self.files)

    def converter(self) -> "SparkDatasetConverter":
        """Petastorm's converter, which makes TensorFlow datasets and torch loaders, also in other processes."""
        from petastorm.spark import SparkDatasetConverter

        return SparkDatasetConverter(self.url, list(self.files), self.rows)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Prevents eviction by any process of this machine inside the block.

        Raises:
            FileNotFoundError: The cache was evicted or damaged since it was found.
        """
        folder = Path(self.url.removeprefix("file://"))
        gone = FileNotFoundError(f"the cache {folder} is no longer complete: materialize it again")
        if not folder.is_dir():
            raise gone
        with locked(folder, shared=True):
            if read_cache(folder) != self:
                raise gone
            yield


def read_cache(folder: Path) -> Cache | None:
    """The cache in a folder, if it is complete; reading it counts as a use."""
    try:
        written = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: a power failure left it empty or cut it off
        return None
    files = [folder / name for name in written["files"]]
    if any(not file.is_file() or file.stat().st_size != written["files"][file.name] for file in files):
        return None
    now = time.time_ns()  # finer than the kernel's own: two uses may be a few milliseconds apart
    os.utime(folder, ns=(now, now))
    urls = tuple(map(to_url, files))
    return Cache(folder.name, to_url(folder), written["rows"], urls, written["content"], written["color"])


def to_url(path: Path) -> str:
    """The path as a URL for Hadoop and Petastorm, which must not be percent-encoded."""
    return f"file://{path}"


class PetastormCaches(dg.ConfigurableResource):
    """The caches of one home: folders whose names begin with the split and a hyphen."""

    root: str
    content: Content = Field(default="original", description="What new caches store of an image.")
    color: Color = Field(default="rgb", description="Whether new caches store color or grayscale images.")
    side_pixels: int | None = Field(
        default=None,
        gt=0,
        description="Width and height that images are scaled to. Caches of original files need none.",
    )
    unnamed_side_pixels: int | None = Field(
        default=None, description="The side that the names of caches leave out, as when there was only one."
    )
    page: Page = Field(default="non_blank", description="Which page or frame of an image is trained on.")
    pixel_limit: int = Field(
        default=50_000_000, gt=0, description="Images with more pixels are downscaled while they are decoded."
    )
    keep: int = Field(default=3, ge=1, description="How many caches of each split to keep.")
    keep_megabytes: float = Field(default=16384, gt=0, description="The maximum size of all caches together.")

    def checkpoints(self, training: str) -> str:
        """The folder of a training's checkpoints, on the same file system as the caches."""
        return f"{self.root}/.trainings/{training}"

    def find(self, name: str) -> Cache | None:
        """The cache of that name, if it is complete."""
        return read_cache(Path(self.root) / name)

    def write(self, rows: DataFrame | LocalRows, name: str, *, ranks: int) -> Cache:
        """Write rows as a cache, with row groups for every rank; see `write_row_groups`.

        The rows' images must match `content` and `color`. The cache can be found only once it is complete.
        """
        root = Path(self.root)
        with self._unfinished() as folder:
            if isinstance(rows, LocalRows):
                written = write_local_row_groups(rows, folder, ranks=ranks)
            else:
                written = write_row_groups(rows, folder, ranks=ranks)
            manifest = {"rows": written.rows, "files": written.sizes, "content": self.content, "color": self.color}
            replace_text(folder / MANIFEST, json.dumps(manifest))
            with locked(root):
                self._delete(root / name)
                folder.rename(root / name)
        cache = self.find(name)
        if cache is None:
            raise OSError(f"the cache {name} was written to {root}, but cannot be read from there")
        return cache

    def evict(self) -> list[str]:
        """Delete caches beyond the limits, the least recently used first.

        The last used cache of each split stays, because a training needs one of each, and so do caches in use. Folders
        in which earlier releases stored embeddings are deleted, too, and old checkpoints of trainings that nobody
        resumed. What else is in the folder stays.

        Returns:
            The names of the deleted folders.
        """
        with locked(Path(self.root)):
            folders = [folder for folder in Path(self.root).glob("[!.]*") if folder.is_dir()]
            former = [folder for folder in folders if FORMER_EMBEDDINGS.fullmatch(folder.name)]
            folders = [folder for folder in folders if (folder / MANIFEST).is_file()]
            oldest_first = sorted(folders, key=lambda folder: folder.stat().st_mtime)
            last_used = {split_of(folder): folder for folder in oldest_first}
            numbers = Counter(map(split_of, folders))
            sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
            evicted = [folder.name for folder in former if self._delete_unused(folder)]
            for checkpoints in Path(self.checkpoints("")).glob("*"):
                with suppress(FileNotFoundError):  # its training has just ended
                    if time.time() - checkpoints.stat().st_mtime > CHECKPOINT_SECONDS:
                        shutil.rmtree(checkpoints, ignore_errors=True)
            for folder in oldest_first:
                too_many = numbers[split_of(folder)] > self.keep
                too_large = sum(sizes.values()) > self.keep_megabytes * MEBIBYTE
                if (too_many or too_large) and folder not in last_used.values() and self._delete_unused(folder):
                    evicted.append(folder.name)
                    numbers[split_of(folder)] -= 1
                    del sizes[folder]
        return evicted

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A hidden folder to write a cache in; what is left of it afterwards is deleted."""
        root = Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with locked(root):  # or another process would take the folder for a leftover before it is locked
                self._delete_leftovers()
                folder = root / f"{UNFINISHED}{uuid4()}"
                folder.mkdir()
                held.enter_context(locked(folder))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _delete_leftovers(self) -> None:
        """Delete the folders that killed processes left."""
        for folder in Path(self.root).glob(f"{UNFINISHED}*"):
            self._delete_unused(folder)

    def _delete_unused(self, folder: Path) -> bool:
        """Delete a folder unless it is locked; returns whether it was deleted."""
        with locked(folder, wait=False) as unused:
            if unused:
                self._delete(folder)
        return unused

    def _delete(self, folder: Path) -> None:
        """Delete a cache, if it exists, so that no process can find a part of it."""
        if folder.is_dir():
            shutil.rmtree(folder.rename(folder.with_name(f"{UNFINISHED}{uuid4()}")))


def split_of(folder: Path) -> str:
    """The split in a cache's name."""
    return folder.name.partition("-")[0]
