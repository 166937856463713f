"""The training split as training processes read it through Petastorm, and the functions that write any cache."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256

import dagster as dg
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.image_splits import read_split, split_digest, split_rows, training_labels, with_content
from image_assets.data.new_images_sheet import SHEET_IMAGES
from image_assets.data.sound_splits import MISSING_LABELS_REMEDY, current_assignments, missing_labels, to_bullets
from image_assets.images.cached_pixels import CACHE_CODE, to_cached_rows
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails
from image_assets.images.pixels import DEFAULT, Reading
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS
from resources.delta.arrow_rows import Row, map_partitions
from resources.delta.delta_log import TableFiles, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.delta.new_rows import Key, NewRows
from resources.delta.parquet_files import open_parquet, row_groups
from resources.delta.petastorm_caches import Cache, LocalRows, PetastormCaches
from resources.delta.row_groups import CACHE_ROW_GROUP_BYTES
from resources.delta.table import Table
from resources.delta.unchanged import describe_once
from resources.training import TrainingProcesses

CACHE_DEPS = ["image_splits", "featured_images", "grayscale_images", "image_files"]
CACHE_KINDS = {"pyspark", "parquet", "petastorm"}
CACHE_SCHEMA = pa.schema([("image_id", pa.string()), ("content", pa.binary()), ("label_index", pa.int64())])


def cache_rows(delta_tables: DeltaTables, split: str, labels: list[str]) -> DataFrame:
    """The split's images that have one of the labels."""
    return split_rows(delta_tables, split).where(F.col("label").isin(labels))


def cache_name(delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int) -> str:
    """The cache's name: the split, the Delta version of image_splits, and a hash of the rows and settings."""
    rows = read_split(delta_tables, split)
    of_labels = split_digest(rows.loc[rows["label"].isin(labels)])
    # Original files suit every side.
    unnamed = caches.content == "original" or caches.side_pixels == caches.unnamed_side_pixels
    side = [] if unnamed else [caches.side_pixels]
    reading = Reading(caches.page, caches.pixel_limit)
    read = [] if reading == DEFAULT else [reading.page, reading.max_pixels]
    settings = json.dumps(
        [CACHE_CODE, of_labels, labels, ranks, CACHE_ROW_GROUP_BYTES, caches.content, caches.color, *side, *read]
    )
    version = delta_tables.last_change(IMAGE_SPLITS)
    return f"{split}-v{version}-{sha256(settings.encode()).hexdigest()[:12]}"


def existing_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int
) -> Cache:
    """The split's cache for the tables as they are now; FileNotFoundError if it has not been written yet."""
    name = cache_name(delta_tables, caches, split, labels, ranks)
    cache = caches.find(name)
    if cache is None:
        raise FileNotFoundError(
            f"there is no complete cache {name} in {caches.root} with content {caches.content!r} and color "
            f"{caches.color!r} for {ranks} process(es): materialize {split}_cache first"
        )
    return cache


def stored_rows(caches: PetastormCaches) -> Callable[[Iterable[Row]], Iterable[Row]]:
    """A function that gives rows their images as the caches store them."""
    if caches.content == "original":
        return iter
    if caches.side_pixels is None:
        raise ValueError(f"caches have the content {caches.content!r}, but no side_pixels to scale images to: set it")
    return partial(
        to_cached_rows,
        side_pixels=caches.side_pixels,
        content=caches.content,
        color=caches.color,
        reading=Reading(caches.page, caches.pixel_limit),
    )


def rows_by_spark(
    delta_tables: DeltaTables, split: str, caches: PetastormCaches, labels: list[str], table: Table
) -> DataFrame:
    """The rows to write."""
    rows = cache_rows(delta_tables, split, labels)
    index = F.array_position(F.array(*map(F.lit, labels)), F.col("label")) - 1
    images = with_content(delta_tables, rows, table)
    images = images.select("image_id", "content", index.cast("long").alias("label_index"))
    return images if caches.content == "original" else map_partitions(images, stored_rows(caches), images.schema)


def local_rows(
    files: TableFiles, caches: PetastormCaches, label_indexes: Mapping[Key, int], table: Table, part: int, of: int
) -> Iterable[Row]:
    """One part of the same rows, read by this process; `label_indexes` has the images by their keys."""
    images = NewRows(tuple(file.url for file in files.files), None, table.keys, wanted=frozenset(label_indexes))
    rows = (
        {
            "image_id": row["image_id"],
            "content": row["content"],
            "label_index": label_indexes[tuple(row[name] for name in table.keys)],
        }
        for row in images.rows([*table.keys, "content"], part, of)
        if row["content"] is not None
    )
    return stored_rows(caches)(rows)


def find_or_write_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, *, ranks: int
) -> tuple[Cache, bool]:
    """The split's cache, and whether it had to be written: it is reused for the same rows and settings."""
    labels = training_labels(delta_tables)
    name = cache_name(delta_tables, caches, split, labels, ranks)
    cache = caches.find(name)
    if cache:
        return cache, False
    table = {"rgb": FEATURED_IMAGES, "gray": GRAYSCALE_IMAGES}[caches.color]
    rows = read_split(delta_tables, split)
    rows = rows.loc[rows["label"].isin(labels)]
    keys = zip(*(rows[key] for key in table.keys), strict=True)
    label_indexes: dict[Key, int] = dict(zip(keys, map(labels.index, rows["label"]), strict=True))
    if lacking := len(label_indexes.keys() - delta_tables.read_keys(table)):
        raise ValueError(f"{table.name} lacks {lacking} images of {split}: materialize {table.name} first")
    files = table_files(delta_tables.uri(table), delta_tables.version_to_read(table))
    executor = executor_for(delta_tables.pyspark, files.size_bytes)
    if executor.spark:
        return caches.write(rows_by_spark(delta_tables, split, caches, labels, table), name, ranks=ranks), True
    with delta_tables.progress_line("cached", len(label_indexes), "images") as progress:
        read = partial(local_rows, files, caches, label_indexes, table)
        local = LocalRows(read, len(label_indexes), CACHE_SCHEMA, executor, progress)
        return caches.write(local, name, ranks=ranks), True


def materialize_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, ranks: int
) -> dg.MaterializeResult:
    """Writes the split's cache unless it exists, and evicts old ones."""
    labels = training_labels(delta_tables)
    left_out = missing_labels(current_assignments(delta_tables))
    if left_out:
        dg.get_dagster_logger().warning(f"left out of training:\n{to_bullets(left_out)}\n{MISSING_LABELS_REMEDY}")
    cache, written = find_or_write_cache(delta_tables, caches, split, ranks=ranks)
    sheet = describe_once(
        delta_tables, f"{split}_cache", lambda: cache_metadata(cache, labels), tables=[], values=[cache.name, *labels]
    )
    groups = row_groups(cache.files)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": cache.rows,
            "bytes": cache.size_bytes,
            "labels": ", ".join(labels),
            "labels_left_out": ", ".join(found.label for found in left_out) or "none",
            "cache": cache.name,
            "cache_url": dg.MetadataValue.url(cache.url),
            "content": cache.content,
            "color": cache.color,
            "written": written,
            "row_groups": len(groups),
            "largest_row_group_bytes": max(size for _, size in groups),
            "evicted": ", ".join(caches.evict()) or "none",
            **sheet,
        },
        data_version=dg.DataVersion(cache.name),
    )


def cache_metadata(cache: Cache, labels: list[str]) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the first rows; empty for raw pixels, which are not image files."""
    if cache.content == "pixels" or not cache.rows:
        return {}
    with open_parquet(cache.files[0]) as parquet:
        rows = next(parquet.iter_batches(SHEET_IMAGES, columns=["image_id", "content", "label_index"])).to_pylist()
    pictures = thumbnails((row["image_id"], row["content"]) for row in rows)
    tiles = [(picture, labels[row["label_index"]]) for picture, row in zip(pictures, rows, strict=True)]
    title = f"{len(rows)} of {cache.rows:,} images, as processes read them"
    return {"images": dg.MetadataValue.md(picture_markdown(contact_sheet(tiles), title))}


@dg.asset(deps=CACHE_DEPS, kinds=CACHE_KINDS, pool="training_cache")
def training_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
) -> dg.MaterializeResult:
    """The training images as Parquet with row groups of about 1 MB; reused if nothing changed."""
    return materialize_cache(delta_tables, petastorm_caches, "training", training_processes.processes)
