"""Training and validation rows, as workers read them through Petastorm."""

import dagster as dg
from pyspark.sql import functions as F

from image_assets.split_caches import cache_name, cache_rows
from image_assets.split_rows import training_labels, with_content
from resources.delta_tables import DeltaTables
from resources.horovod_runner import HorovodRunner
from resources.parquet_footers import row_groups
from resources.petastorm_cache import Cache, PetastormCaches

UPSTREAM = ["image_splits", "featured_images", "image_files"]
KINDS = {"pyspark", "parquet", "petastorm"}


def cache_split(delta_tables: DeltaTables, caches: PetastormCaches, split: str, *, ranks: int) -> tuple[Cache, bool]:
    """The split's cache, and whether it had to be written: the same rows and settings find the same cache."""
    labels = training_labels(delta_tables)
    name = cache_name(delta_tables, split, labels, ranks)
    cache = caches.find(name)
    if cache:
        return cache, False
    place = F.array_position(F.array(*map(F.lit, labels)), F.col("label")) - 1
    rows = with_content(delta_tables, cache_rows(delta_tables, split, labels))
    cache = caches.write(rows.select("content", place.cast("long").alias("label_index")), name, ranks=ranks)
    caches.delete_others(name, prefix=f"{split}-")
    return cache, True


def materialized(cache: Cache, written: bool) -> dg.MaterializeResult:
    """A cache's answer to Dagster."""
    groups = row_groups(cache.files)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": cache.rows,
            "cache": cache.name,
            "cache_url": dg.MetadataValue.url(cache.url),
            "written": written,
            "row_groups": len(groups),
            "largest_row_group_bytes": max(size for _, size in groups),
        },
        data_version=dg.DataVersion(cache.name),
    )


@dg.asset(deps=UPSTREAM, kinds=KINDS, pool="training_cache")
def training_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, horovod: HorovodRunner
) -> dg.MaterializeResult:
    """The images to train on, in Parquet row groups near 1 MB; found again when nothing changed."""
    return materialized(*cache_split(delta_tables, petastorm_caches, "training", ranks=horovod.processes))


@dg.asset(deps=UPSTREAM, kinds=KINDS, pool="validation_cache")
def validation_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, horovod: HorovodRunner
) -> dg.MaterializeResult:
    """The images to choose the best epoch by, written like the training cache."""
    return materialized(*cache_split(delta_tables, petastorm_caches, "validation", ranks=horovod.processes))
