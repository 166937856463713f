"""The training split as training processes read it through Petastorm, and the functions that write any cache."""

import json
from functools import partial
from hashlib import sha256

import dagster as dg
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
from resources.delta.arrow_rows import map_partitions
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import open_parquet, row_groups
from resources.delta.petastorm_caches import UNNAMED_SIDE_PIXELS, Cache, PetastormCaches
from resources.delta.row_groups import CACHE_ROW_GROUP_BYTES
from resources.delta.unchanged import describe_once
from resources.training import TrainingProcesses

CACHE_DEPS = ["image_splits", "featured_images", "grayscale_images", "image_files"]
CACHE_KINDS = {"pyspark", "parquet", "petastorm"}


def cache_rows(delta_tables: DeltaTables, split: str, labels: list[str]) -> DataFrame:
    """The split's images that have one of the labels."""
    return split_rows(delta_tables, split).where(F.col("label").isin(labels))


def cache_name(delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int) -> str:
    """The cache's name: the split, the Delta version of image_splits, and a hash of the rows and settings."""
    rows = read_split(delta_tables, split)
    of_labels = split_digest(rows.loc[rows["label"].isin(labels)])
    side = [] if caches.side_pixels == UNNAMED_SIDE_PIXELS else [caches.side_pixels]
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


def rows_to_cache(delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str]) -> DataFrame:
    """The rows to write; ValueError if the table that they come from lacks some."""
    rows = cache_rows(delta_tables, split, labels)
    table = {"rgb": FEATURED_IMAGES, "gray": GRAYSCALE_IMAGES}[caches.color]
    lacking = rows.join(delta_tables.dataframe(table), on=[*table.keys], how="left_anti").count()
    if lacking:
        raise ValueError(f"{table.name} lacks {lacking} images of {split}: materialize {table.name} first")
    index = F.array_position(F.array(*map(F.lit, labels)), F.col("label")) - 1
    images = with_content(delta_tables, rows, table)
    images = images.select("image_id", "content", index.cast("long").alias("label_index"))
    if caches.content == "original":
        return images
    stored = partial(
        to_cached_rows,
        side_pixels=caches.side_pixels,
        content=caches.content,
        color=caches.color,
        reading=Reading(caches.page, caches.pixel_limit),
    )
    return map_partitions(images, stored, images.schema)


def find_or_write_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, *, ranks: int
) -> tuple[Cache, bool]:
    """The split's cache, and whether it had to be written: it is reused for the same rows and settings."""
    labels = training_labels(delta_tables)
    name = cache_name(delta_tables, caches, split, labels, ranks)
    cache = caches.find(name)
    if cache:
        return cache, False
    return caches.write(rows_to_cache(delta_tables, caches, split, labels), name, ranks=ranks), True


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
