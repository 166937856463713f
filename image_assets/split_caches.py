"""The Petastorm cache of a split: its name says what went into it, so that it is found again."""

import json
from functools import partial
from hashlib import sha256

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.cache_contents import CACHE_CODE, in_cache
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS
from image_assets.split_rows import digest, read_split, split_rows, training_labels, with_content
from resources.arrow_rows import map_partitions
from resources.delta_tables import DeltaTables
from resources.petastorm_cache import Cache, PetastormCaches
from resources.row_group_files import ROW_GROUP_BYTES


def cache_rows(delta_tables: DeltaTables, split: str, labels: list[str]) -> DataFrame:
    """The split's images under the labels that are told apart."""
    return split_rows(delta_tables, split).where(F.col("label").isin(labels))


def cache_name(delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int) -> str:
    """The split, the Delta version that its rows are of, and a hash of these rows and the settings."""
    rows = read_split(delta_tables.thin, split)
    of_labels = digest(rows.loc[rows["label"].isin(labels)])
    settings = json.dumps([CACHE_CODE, of_labels, labels, ranks, ROW_GROUP_BYTES, caches.content, caches.color])
    version = delta_tables.last_change(IMAGE_SPLITS)
    return f"{split}-v{version}-{sha256(settings.encode()).hexdigest()[:12]}"


def existing_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int
) -> Cache:
    """The split's cache as the tables are now; FileNotFoundError when it was not written for them yet."""
    name = cache_name(delta_tables, caches, split, labels, ranks)
    cache = caches.find(name)
    if cache is None:
        raise FileNotFoundError(
            f"there is no whole cache {name} in {caches.root}, of content {caches.content!r} and color "
            f"{caches.color!r} for {ranks} process(es): materialize {split}_cache first"
        )
    return cache


def rows_to_cache(delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str]) -> DataFrame:
    """A cache's rows; ValueError when the gray ones are not there yet."""
    rows = cache_rows(delta_tables, split, labels)
    table = {"rgb": FEATURED_IMAGES, "gray": GRAYSCALE_IMAGES}[caches.color]
    lacking = rows.join(delta_tables.read(table), on=[*table.keys], how="left_anti").count()
    if lacking:
        raise ValueError(f"{table.name} lacks {lacking} images of {split}: materialize {table.name} first")
    index = F.array_position(F.array(*map(F.lit, labels)), F.col("label")) - 1
    images = with_content(delta_tables, rows, table)
    images = images.select("image_id", "content", index.cast("long").alias("label_index"))
    if caches.content == "original":
        return images
    return map_partitions(images, partial(in_cache, content=caches.content, color=caches.color), images.schema)


def cache_split(delta_tables: DeltaTables, caches: PetastormCaches, split: str, *, ranks: int) -> tuple[Cache, bool]:
    """The split's cache, and whether it had to be written: the same rows and settings find the same cache."""
    labels = training_labels(delta_tables.thin)
    name = cache_name(delta_tables, caches, split, labels, ranks)
    cache = caches.find(name)
    if cache:
        return cache, False
    return caches.write(rows_to_cache(delta_tables, caches, split, labels), name, ranks=ranks), True
