"""The Petastorm cache of a split: its name says what went into it, so that it is found again."""

import json
from hashlib import sha256

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.schemas import IMAGE_SPLITS
from image_assets.split_rows import digest, split_rows
from resources.delta_tables import DeltaTables
from resources.petastorm_cache import ROW_GROUP_BYTES, Cache, PetastormCaches


def cache_rows(delta_tables: DeltaTables, split: str, labels: list[str]) -> DataFrame:
    """The split's images under the labels that are told apart."""
    return split_rows(delta_tables, split).where(F.col("label").isin(labels))


def cache_name(delta_tables: DeltaTables, split: str, labels: list[str], ranks: int) -> str:
    """The split, the Delta version that its rows are of, and a hash of these rows and the settings."""
    settings = json.dumps([digest(cache_rows(delta_tables, split, labels)), labels, ranks, ROW_GROUP_BYTES])
    version = delta_tables.last_change(IMAGE_SPLITS)
    return f"{split}-v{version}-{sha256(settings.encode()).hexdigest()[:12]}"


def existing_cache(
    delta_tables: DeltaTables, caches: PetastormCaches, split: str, labels: list[str], ranks: int
) -> Cache:
    """The split's cache as the tables are now; FileNotFoundError when it was not written for them yet."""
    name = cache_name(delta_tables, split, labels, ranks)
    cache = caches.find(name)
    if cache is None:
        raise FileNotFoundError(f"there is no whole cache {name} in {caches.root}: materialize {split}_cache first")
    return cache
