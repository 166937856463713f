"""Checks of the data group: keys, losses, labels, splits."""

from collections import Counter

import dagster as dg
import pyarrow.compute as pc

from image_assets.current_files import KEYS, current_keys
from image_assets.data.exploration import current_images, groups_of_several, to_table
from image_assets.file_states import QUARANTINED
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_SPLITS,
    RAW_IMAGES,
)
from image_assets.split_caches import existing_cache
from image_assets.split_rows import training_labels
from resources.delta_tables import DeltaTables
from resources.horovod_runner import HorovodRunner
from resources.parquet_footers import row_groups
from resources.petastorm_cache import ROW_GROUP_BYTES, PetastormCaches
from resources.tables import Table

SPLITS = ("training", "validation", "test")
QUARANTINED_SHARE = 0.05  # more than this looks like a broken upload, not like a broken file
ROW_GROUP_ROWS = 4  # a row group of so few rows is as small as its images allow


def keys_unique(table: Table) -> dg.AssetChecksDefinition:
    """The check that no two rows of the table have the same keys."""

    @dg.asset_check(asset=table.name, name="keys_unique", description=f"One row for each {', '.join(table.keys)}.")
    def check(delta_tables: DeltaTables) -> dg.AssetCheckResult:
        rows = delta_tables.thin.read(table, table.keys).to_pandas()
        repeated = len(rows[rows.duplicated(keep=False)].drop_duplicates())
        return dg.AssetCheckResult(passed=repeated == 0, metadata={"repeated_keys": repeated})

    return check


def row_groups_small(split: str) -> dg.AssetChecksDefinition:
    """The check that a cache has small row groups, and some for every rank."""

    @dg.asset_check(
        asset=f"{split}_cache", name="row_groups_small", description="Row groups near 1 MB, at least one for each rank."
    )
    def check(
        delta_tables: DeltaTables, petastorm_caches: PetastormCaches, horovod: HorovodRunner
    ) -> dg.AssetCheckResult:
        try:
            labels = training_labels(delta_tables)
            cache = existing_cache(delta_tables, petastorm_caches, split, labels, horovod.processes)
        except (ValueError, FileNotFoundError) as nothing_yet:
            return dg.AssetCheckResult(passed=False, description=str(nothing_yet))
        groups = row_groups(cache.files)
        large = [size for rows, size in groups if size > 2 * ROW_GROUP_BYTES and rows > ROW_GROUP_ROWS]
        passed = not large and len(groups) >= horovod.processes
        return dg.AssetCheckResult(passed=passed, metadata={"row_groups": len(groups), "too_large": len(large)})

    return check


key_checks = [
    keys_unique(table) for table in (IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)
]
row_group_checks = [row_groups_small(split) for split in ("training", "validation")]


@dg.asset_check(asset="grayscale_images", description="Every current file is a row of each image table.")
def no_file_lost(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The ledger against the tables."""
    thin = delta_tables.thin
    current = set(current_keys(thin).itertuples(index=False, name=None))
    rows = {table.name: thin.read_keys(table) for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)}
    lost = {name: len(current - there) for name, there in rows.items()}
    listed = thin.read_keys(IMAGE_FILES)
    unlisted = sum((path,) not in listed for path, _ in rows[RAW_IMAGES.name])
    metadata = {f"missing_in_{name}": count for name, count in lost.items()} | {"not_in_the_ledger": unlisted}
    return dg.AssetCheckResult(passed=not any(metadata.values()), metadata=metadata)


@dg.asset_check(asset="image_files", description="Few files are quarantined; many look like a broken upload.")
def few_quarantined(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The share of quarantined files, by reason."""
    thin = delta_tables.thin
    counts = Counter(thin.read(IMAGE_FILES, ["reason"], pc.field("state") == QUARANTINED)["reason"].to_pylist())
    reasons = {f"quarantined_{reason}": count for reason, count in counts.most_common()}
    share = counts.total() / max(1, thin.snapshot(IMAGE_FILES).rows)
    return dg.AssetCheckResult(
        passed=share <= QUARANTINED_SHARE, severity=dg.AssetCheckSeverity.WARN, metadata={"share": share, **reasons}
    )


@dg.asset_check(asset="featured_images", description="No image is there under two labels.")
def label_conflicts(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Current files with the same image under different labels; near duplicates that differ are listed only."""
    images = current_images(delta_tables.thin)
    same = groups_of_several(images, "image_id", "label")
    near = groups_of_several(images, "duplicate_group", "image_id", "label")
    advice = "delete the files named here from the folders of the labels that are wrong"
    return dg.AssetCheckResult(
        passed=not same,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "images": len(same),
            "files": to_table(same),
            "near_duplicate_groups": len(near),
            "near_duplicates": to_table(near),
        },
        description=advice if same else None,
    )


@dg.asset_check(asset="image_splits", description="Every label has images in training, validation and test.")
def labels_in_every_split(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The labels that a split lacks."""
    assigned = delta_tables.thin.read(IMAGE_SPLITS, [*KEYS, "label", "split"]).to_pandas()
    rows = assigned.merge(current_keys(delta_tables.thin), on=KEYS)
    present = {split: set(rows["label"][rows["split"] == split]) for split in SPLITS}
    labels = set().union(*present.values())
    lacking = {f"lacking_in_{split}": ", ".join(sorted(labels - present[split])) or "none" for split in SPLITS}
    passed = bool(labels) and all(labels == found for found in present.values())
    advice = "add images of the labels named here: about seven a label are enough to have some in every split"
    return dg.AssetCheckResult(passed=passed, metadata=lacking, description=None if passed else advice)


@dg.asset_check(asset="image_splits", blocking=True, description="No group of near duplicates is in two splits.")
def groups_in_one_split(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The groups that leak from one split into another."""
    assigned = delta_tables.thin.read(IMAGE_SPLITS, ["duplicate_group", "split"]).to_pandas().dropna().drop_duplicates()
    found = sorted(set(assigned["duplicate_group"][assigned["duplicate_group"].duplicated()]))[:10]
    return dg.AssetCheckResult(passed=not found, metadata={"groups": ", ".join(found) or "none"})
