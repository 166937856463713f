"""Checks of the training caches, from the footers of their files."""

from collections.abc import Sequence

import dagster as dg

from image_assets.split_caches import existing_cache
from image_assets.split_rows import training_labels
from resources.delta_tables import DeltaTables
from resources.parquet_footers import row_groups
from resources.petastorm_cache import PetastormCaches
from resources.process_runner import TrainingProcesses
from resources.row_group_files import ROW_GROUP_BYTES, ROW_GROUPS_PER_RANK, shard_rows

FEW_ROWS = 4  # a row group of so few rows is as small as its images allow


def row_group_faults(groups: Sequence[tuple[int, int]], rows: int, ranks: int) -> list[str]:
    """What is wrong with the row groups, by rows and bytes, of a cache of so many rows."""
    shards = shard_rows(groups, ranks)
    sizes = [size for _, size in groups]
    large = [size for rows_in, size in groups if size > 2 * ROW_GROUP_BYTES and rows_in > FEW_ROWS]
    least = min(rows, ROW_GROUPS_PER_RANK * ranks)
    faults = []
    if sum(shards) != rows:
        faults.append(f"{sum(shards)} rows where {rows} were written")
    if len(groups) < least:
        faults.append(f"{len(groups)} row groups for {ranks} rank(s): expected {least} or more")
    if large:
        faults.append(f"{len(large)} row groups above 2 MB")
    if len(groups) > least and sum(sizes) < len(groups) * ROW_GROUP_BYTES / 2:
        faults.append(f"{len(groups)} row groups of {sum(sizes) // len(groups):,} bytes: expected about 1 MB")
    if max(shards) - min(shards) > 1:
        faults.append(f"shards of {min(shards)} to {max(shards)} rows")
    return faults


def row_groups_balanced(split: str) -> dg.AssetChecksDefinition:
    """The check that a cache is read fast and evenly: every rank some row groups, all of them alike."""

    @dg.asset_check(
        asset=f"{split}_cache",
        name="row_groups_balanced",
        description="Every row is there, in row groups near 1 MB, four for each rank, and shards of equal size. "
        f"If it fails: delete the folder that its message names, and materialize {split}_cache.",
    )
    def check(
        delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
    ) -> dg.AssetCheckResult:
        ranks = training_processes.processes
        try:
            cache = existing_cache(delta_tables, petastorm_caches, split, training_labels(delta_tables.thin), ranks)
        except (ValueError, FileNotFoundError) as nothing_yet:
            return dg.AssetCheckResult(passed=False, description=str(nothing_yet))
        groups = row_groups(cache.files)
        faults = row_group_faults(groups, cache.rows, ranks)
        return dg.AssetCheckResult(
            passed=not faults,
            metadata={"row_groups": len(groups), "shard_rows": ", ".join(map(str, shard_rows(groups, ranks)))},
            description=f"{'; '.join(faults)}: delete {cache.url} and materialize {split}_cache" if faults else None,
        )

    return check


row_group_checks = [row_groups_balanced(split) for split in ("training", "validation")]
