"""Training and validation rows, as workers read them through Petastorm."""

import dagster as dg

from image_assets.split_caches import cache_split
from resources.delta_tables import DeltaTables
from resources.parquet_footers import row_groups
from resources.petastorm_cache import PetastormCaches
from resources.process_runner import TrainingProcesses

UPSTREAM = ["image_splits", "featured_images", "grayscale_images", "image_files"]
KINDS = {"pyspark", "parquet", "petastorm"}


def materialize(delta_tables: DeltaTables, caches: PetastormCaches, split: str, ranks: int) -> dg.MaterializeResult:
    """The split's cache, written if it has to be, and what was evicted for it."""
    cache, written = cache_split(delta_tables, caches, split, ranks=ranks)
    groups = row_groups(cache.files)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": cache.rows,
            "cache": cache.name,
            "cache_url": dg.MetadataValue.url(cache.url),
            "content": cache.content,
            "color": cache.color,
            "written": written,
            "row_groups": len(groups),
            "largest_row_group_bytes": max(size for _, size in groups),
            "evicted": ", ".join(caches.evict()) or "none",
        },
        data_version=dg.DataVersion(cache.name),
    )


@dg.asset(deps=UPSTREAM, kinds=KINDS, pool="training_cache")
def training_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
) -> dg.MaterializeResult:
    """The images to train on, in Parquet row groups near 1 MB; found again when nothing changed."""
    return materialize(delta_tables, petastorm_caches, "training", training_processes.processes)


@dg.asset(deps=UPSTREAM, kinds=KINDS, pool="validation_cache")
def validation_cache(
    delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
) -> dg.MaterializeResult:
    """The images to choose the best epoch by, written like the training cache."""
    return materialize(delta_tables, petastorm_caches, "validation", training_processes.processes)
