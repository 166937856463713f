"""Training and validation rows, as workers read them through Petastorm."""

import dagster as dg

from image_assets.contact_sheets import SHOWN, thumbnails
from image_assets.pictures import contact_sheet, to_markdown
from image_assets.split_caches import cache_split
from image_assets.split_rows import training_labels
from resources.delta_tables import DeltaTables
from resources.parquet_footers import open_parquet, row_groups
from resources.petastorm_cache import Cache, PetastormCaches
from resources.process_runner import TrainingProcesses

UPSTREAM = ["image_splits", "featured_images", "grayscale_images", "image_files"]
KINDS = {"pyspark", "parquet", "petastorm"}


def materialize(delta_tables: DeltaTables, caches: PetastormCaches, split: str, ranks: int) -> dg.MaterializeResult:
    """The split's cache, written if it has to be, and what was evicted for it."""
    labels = training_labels(delta_tables.thin)
    cache, written = cache_split(delta_tables, caches, split, ranks=ranks)
    groups = row_groups(cache.files)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": cache.rows,
            "bytes": cache.size_bytes,
            "labels": ", ".join(labels),
            "cache": cache.name,
            "cache_url": dg.MetadataValue.url(cache.url),
            "content": cache.content,
            "color": cache.color,
            "written": written,
            "row_groups": len(groups),
            "largest_row_group_bytes": max(size for _, size in groups),
            "evicted": ", ".join(caches.evict()) or "none",
            **cached_look(cache, labels),
        },
        data_version=dg.DataVersion(cache.name),
    )


def cached_look(cache: Cache, labels: list[str]) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the first rows; nothing for raw pixels, which are no image files."""
    if cache.content == "pixels" or not cache.rows:
        return {}
    with open_parquet(cache.files[0]) as parquet:
        rows = next(parquet.iter_batches(SHOWN, columns=["image_id", "content", "label_index"])).to_pylist()
    looks = thumbnails((row["image_id"], row["content"]) for row in rows)
    tiles = [(look, labels[row["label_index"]]) for look, row in zip(looks, rows, strict=True)]
    title = f"{len(rows)} of {cache.rows:,} images, as processes read them"
    return {"images": dg.MetadataValue.md(to_markdown(contact_sheet(tiles), title))}


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
