"""Petastorm caches: written once, found again by name (workers open them by URL)."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from resources.spark_session import cached

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

ROW_GROUP_BYTES = 1024 * 1024
ROW_GROUPS_PER_RANK = 4
PLACE = "_place"  # a column that orders the rows while they are written
MANIFEST = "_cache.json"  # written last: a folder without it is no cache


@dataclass(frozen=True)
class Cache:
    """Rows as training workers read them: Parquet files in one folder."""

    name: str
    url: str
    rows: int
    files: tuple[str, ...]

    def converter(self) -> "SparkDatasetConverter":
        """The cache in Petastorm's hands: makes TensorFlow datasets and torch loaders, also in other processes."""
        from petastorm.spark import SparkDatasetConverter

        return SparkDatasetConverter(self.url, list(self.files), self.rows)


def to_url(path: Path) -> str:
    """The path as Hadoop and Petastorm take it: as it is, not percent-encoded."""
    return f"file://{path}"


class PetastormCaches(dg.ConfigurableResource):
    """The caches of one home, each a folder named by what went into it."""

    root: str

    def find(self, name: str) -> Cache | None:
        """The cache of that name, if it was written to the end."""
        manifest = Path(self.root) / name / MANIFEST
        if not manifest.is_file():
            return None
        written = json.loads(manifest.read_text())
        files = [manifest.parent / file for file in written["files"]]
        gone = [file.name for file in files if not file.is_file() or file.stat().st_size != written["files"][file.name]]
        if gone:
            return None
        return Cache(name, to_url(manifest.parent), written["rows"], tuple(map(to_url, files)))

    def write(self, rows: DataFrame, name: str, *, ranks: int) -> Cache:
        """Write rows under a name, in row groups near 1 MB and enough of them for every rank to have some.

        ValueError when there are fewer rows than ranks: a rank without rows would wait for the others for ever.
        """
        # Ranges of a random number: files of about equal size and none empty, however few the rows; round robin, which
        # begins anywhere for each partition of its input, would leave some empty.
        with cached(rows.withColumn(PLACE, F.rand(seed=0))) as rows:
            count = rows.count()
            if count < ranks:
                raise ValueError(
                    f"{count} images cannot feed {ranks} processes: add images to the landing folder, "
                    "or set IMAGE_ASSETS_PROCESSES to a lower number"
                )
            folder = Path(self.root) / name
            shutil.rmtree(folder, ignore_errors=True)
            (
                rows.repartitionByRange(min(count, ROW_GROUPS_PER_RANK * ranks), PLACE)
                .drop(PLACE)
                .write.option("compression", "uncompressed")
                .option("parquet.block.size", ROW_GROUP_BYTES)
                # Parquet looks at a row group's size after this many rows; its default of 100 lets groups grow far
                # larger.
                .option("parquet.page.size.row.check.min", 4)
                .option("parquet.page.size.row.check.max", 32)
                .option("parquet.enable.dictionary", "false")
                .parquet(to_url(folder))
            )
        files = {file.name: file.stat().st_size for file in sorted(folder.glob("part-*.parquet"))}
        (folder / MANIFEST).write_text(json.dumps({"rows": count, "files": files}))
        cache = self.find(name)
        if cache is None:
            raise OSError(f"the cache {folder} was written and cannot be found again")
        return cache

    def delete_others(self, kept: str, *, prefix: str, keep: int = 3) -> list[str]:
        """Delete the oldest caches whose names begin with `prefix`, but for the newest few and `kept`."""
        folders = sorted(Path(self.root).glob(f"{prefix}*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        deleted = [folder for folder in folders[keep:] if folder.name != kept]
        for folder in deleted:
            shutil.rmtree(folder)
        return [folder.name for folder in deleted]
