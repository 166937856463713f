"""Checks of the data group: keys, lost files, quarantine, labels, splits, caches."""

from collections import Counter
from collections.abc import Sequence

import dagster as dg
import pyarrow.compute as pc

from image_assets.data.fetched_images import FAILED
from image_assets.data.folder_layout import SPLITS
from image_assets.data.given_labels import (
    AMBIGUOUS,
    CONTRADICTORY,
    UNUSABLE,
    files_not_found,
    label_warnings,
    match_counts,
)
from image_assets.data.image_files import IMAGE_KEYS, UNREADABLE_FOLDER, current_key_batches, current_keys
from image_assets.data.image_samples import PATHS_PER_GROUP, Group, groups_table
from image_assets.data.image_splits import training_labels
from image_assets.data.inspection import QUARANTINED
from image_assets.data.sound_splits import (
    LEAKS_CHECK,
    LEAKS_READ,
    LEAKS_REMEDY,
    LISTED_PROBLEMS,
    MISSING_LABELS_REMEDY,
    Leak,
    current_assignments,
    given_and_other_leaks,
    missing_labels,
    to_bullets,
)
from image_assets.data.table_checks import keys_unique
from image_assets.data.training_cache import existing_cache
from image_assets.schemas import (
    FEATURED_IMAGES,
    FETCHED_IMAGES,
    GIVEN_LABELS,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_SPLITS,
    RAW_IMAGES,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import row_groups
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.queries import missing_keys, querying
from resources.delta.row_groups import CACHE_ROW_GROUP_BYTES, ROW_GROUPS_PER_RANK, row_group_count, shard_rows
from resources.delta.unchanged import table_check
from resources.training import TrainingProcesses

LISTED_ROWS = 20
QUARANTINED_SHARE = 0.05  # a higher share suggests a broken upload
LOST_FILES_REMEDY = "materialize the group data; if that does not help, `make audit` lists the files"
QUARANTINE_REMEDY = (
    "`image_files` lists the files and reasons; replace broken files, delete files that are not images or exclude them "
    "with IMAGE_ASSETS_EXCLUDE, and launch `replay_quarantine` after raising a limit"
)
PAGES_REMEDY = "the first page that is not blank is used; if the others matter, save each page as a file of its own"
FOLDERS_REMEDY = (
    "give the account that runs Dagster access to them, or skip them with IMAGE_ASSETS_EXCLUDE; until then, the state "
    "of the files in them is the last one known"
)
LABEL_CONFLICTS_REMEDY = "delete the listed files from the folders of the wrong labels"
key_checks = [
    keys_unique(table)
    for table in (
        FETCHED_IMAGES,
        IMAGE_FILES,
        RAW_IMAGES,
        GIVEN_LABELS,
        FEATURED_IMAGES,
        GRAYSCALE_IMAGES,
        IMAGE_SPLITS,
    )
]


def row_group_problems(groups: Sequence[tuple[int, int]], rows: int, ranks: int) -> list[str]:
    """The problems of a cache's row groups (rows, bytes); `rows` is the number of rows written."""
    shards = shard_rows(groups, ranks)
    sizes = [size for _, size in groups]
    least = min(rows, ROW_GROUPS_PER_RANK * ranks)
    problems = []
    if sum(shards) != rows:
        problems.append(f"{sum(shards)} rows, but {rows} were written")
    if len(groups) < least:
        problems.append(f"{len(groups)} row groups for {ranks} rank(s): expected {least} or more")
    # Groups have equal numbers of rows, so one with a large image is large. Only their number depends on the writer.
    too_few = least <= len(groups) < row_group_count(rows, sum(sizes) // 2, ranks)
    too_many = len(groups) > least and sum(sizes) < len(groups) * CACHE_ROW_GROUP_BYTES / 2
    if too_few or too_many:
        problems.append(f"{len(groups)} row groups of {sum(sizes) // len(groups):,} bytes: expected about 1 MB")
    if max(shards) - min(shards) > 1:
        problems.append(f"shards of {min(shards)} to {max(shards)} rows")
    return problems


def row_groups_balanced(split: str) -> dg.AssetChecksDefinition:
    """The check that every rank reads an equal share of a cache, in row groups of a good size."""

    @dg.asset_check(
        asset=f"{split}_cache",
        name="row_groups_balanced",
        description="The cache is complete, with row groups of about 1 MB, at least four per rank, and equal shards. "
        f"If it fails: delete the folder named in the message, and materialize {split}_cache.",
    )
    def check(
        delta_tables: DeltaTables, petastorm_caches: PetastormCaches, training_processes: TrainingProcesses
    ) -> dg.AssetCheckResult:
        ranks = training_processes.processes
        try:
            cache = existing_cache(delta_tables, petastorm_caches, split, training_labels(delta_tables), ranks)
        except (ValueError, FileNotFoundError) as nothing_yet:
            return dg.AssetCheckResult(passed=False, description=str(nothing_yet))
        groups = row_groups(cache.files)
        problems = row_group_problems(groups, cache.rows, ranks)
        return dg.AssetCheckResult(
            passed=not problems,
            metadata={"row_groups": len(groups), "shard_rows": ", ".join(map(str, shard_rows(groups, ranks)))},
            description=f"{'; '.join(problems)}: delete {cache.url} and materialize {split}_cache"
            if problems
            else None,
        )

    return check


row_group_checks = [row_groups_balanced(split) for split in ("training", "validation")]


def to_schema(columns: Sequence[str]) -> dg.TableSchema:
    """A schema of string columns."""
    return dg.TableSchema([dg.TableColumn(name) for name in columns])


@table_check(
    asset="grayscale_images",
    reads=[IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES],
    description=f"Every current file has a row in each image table. If it fails: {LOST_FILES_REMEDY}.",
)
def no_file_lost(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Compares the ledger with the tables."""
    lost = {
        table.name: missing_keys(
            current_key_batches(delta_tables), delta_tables.batches(table, IMAGE_KEYS), IMAGE_KEYS
        ).count
        for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES)
    }
    raw, listed = (delta_tables.batches(table, ["path"]) for table in (RAW_IMAGES, IMAGE_FILES))
    unlisted = missing_keys(raw, listed, ["path"]).count
    metadata = {f"missing_in_{name}": count for name, count in lost.items()} | {"not_in_the_ledger": unlisted}
    summary = ", ".join(f"{name} {count:,}" for name, count in metadata.items() if count)
    return dg.AssetCheckResult(
        passed=not summary, metadata=metadata, description=f"{summary}: {LOST_FILES_REMEDY}" if summary else None
    )


@table_check(
    asset="image_files",
    reads=[IMAGE_FILES],
    description=f"At most {QUARANTINED_SHARE:.0%} of the files are quarantined; more suggest a broken upload. "
    f"If it fails: {QUARANTINE_REMEDY}.",
)
def few_quarantined(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The share of quarantined files, by reason."""
    counts = Counter(delta_tables.read(IMAGE_FILES, ["reason"], pc.field("state") == QUARANTINED)["reason"].to_pylist())
    reasons = {f"quarantined_{reason}": count for reason, count in counts.most_common()}
    files = delta_tables.snapshot(IMAGE_FILES).rows
    share = counts.total() / max(1, files)
    passed = share <= QUARANTINED_SHARE
    found = f"{counts.total():,} of {files:,} files are quarantined, more than {QUARANTINED_SHARE:.0%}"
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"share": round(share, 4), **reasons},
        description=None if passed else f"{found}: {QUARANTINE_REMEDY}",
    )


@table_check(
    asset="featured_images",
    reads=[FEATURED_IMAGES, IMAGE_FILES],
    description=f"Every current file holds one page or frame. If it fails: {PAGES_REMEDY}.",
)
def one_page_each(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The current files with several pages, of which one is used."""
    rows = delta_tables.read(FEATURED_IMAGES, [*IMAGE_KEYS, "pages"], pc.field("pages") > 1).to_pylist()
    current = set(current_keys(delta_tables).itertuples(index=False, name=None)) if rows else set()
    found = [row for row in rows if (row["path"], row["image_id"]) in current]
    records = [dg.TableRecord({"path": row["path"], "pages": row["pages"]}) for row in found[:LISTED_ROWS]]
    columns = [dg.TableColumn("path"), dg.TableColumn("pages", "int")]
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files": len(found), "listed": dg.MetadataValue.table(records, dg.TableSchema(columns))},
        description=f"{len(found):,} files have several pages: {PAGES_REMEDY}" if found else None,
    )


@table_check(
    asset="image_files",
    reads=[IMAGE_FILES],
    description=f"Every folder in the landing folder can be read. If it fails: {FOLDERS_REMEDY}.",
)
def every_folder_readable(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The folders that the last listing could not read."""
    unreadable = (pc.field("state") == QUARANTINED) & (pc.field("reason") == UNREADABLE_FOLDER)
    rows = delta_tables.read(IMAGE_FILES, ["path", "message"], unreadable).to_pylist()
    shown = dg.MetadataValue.table([dg.TableRecord(row) for row in rows[:LISTED_ROWS]], to_schema(["path", "message"]))
    return dg.AssetCheckResult(
        passed=not rows,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"folders": len(rows), "unreadable": shown},
        description=f"{len(rows):,} folders cannot be read: {FOLDERS_REMEDY}" if rows else None,
    )


@table_check(
    asset="fetched_images",
    reads=[FETCHED_IMAGES],
    description="Every image in the table was downloaded. If it fails: fix the listed addresses, or launch "
    "`fetch_images` again, which retries the failed ones.",
)
def every_image_fetched(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The images that could not be downloaded, by reason; the next run retries them."""
    columns = ["url", "reason", "message"]
    failed = delta_tables.read(FETCHED_IMAGES, columns, pc.field("state") == FAILED).to_pylist()
    reasons = Counter(f"failed_{row['reason']}" for row in failed)
    shown = dg.MetadataValue.table([dg.TableRecord(row) for row in failed[:LISTED_ROWS]], to_schema(columns))
    remedy = "fix the listed addresses, or launch `fetch_images` again, which retries them"
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"images": shown, **reasons},
        description=f"{len(failed):,} images were not downloaded: {remedy}" if failed else None,
    )


@table_check(
    asset="given_labels",
    reads=[GIVEN_LABELS, IMAGE_FILES],
    description="Every row of the label table has the path of one existing file and one valid label, and labels are "
    "written in one way. If it fails: fix the listed rows; until then their images have no label.",
)
def label_table_is_sound(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Rows without one file and one valid label, and labels that look like mistakes; how many paths are inexact."""
    wrong = pc.field("state").isin([CONTRADICTORY, UNUSABLE, AMBIGUOUS])
    rows = delta_tables.read(GIVEN_LABELS, ["path", "state", "message"], wrong).to_pylist()
    lacking = files_not_found(delta_tables)
    found = [
        *rows,
        *({"path": path, "state": "not there", "message": "no such file"} for path in lacking),
    ]
    counts = Counter(str(row["state"]).replace(" ", "_") for row in found)
    warnings = label_warnings(delta_tables)
    advice = "fix the listed rows of the label table; until then their images have no label"
    return dg.AssetCheckResult(
        passed=not found and not warnings,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            **{state: counts[state] for state in (CONTRADICTORY, UNUSABLE, AMBIGUOUS, "not_there")},
            **{f"matched_by_{kind}": count for kind, count in match_counts(delta_tables).items()},
            "files": dg.MetadataValue.table(
                [dg.TableRecord(row) for row in found[:LISTED_ROWS]],
                to_schema(["path", "state", "message"]),
            ),
        },
        description="\n".join(f"- {problem}" for problem in [*([advice] if found else []), *warnings]) or None,
    )


def conflicting_labels(delta_tables: DeltaTables) -> tuple[list[Group], list[Group]]:
    """The current images with several labels: groups of identical ones, and of near duplicates."""
    with querying(
        featured=delta_tables.batches(FEATURED_IMAGES, [*IMAGE_KEYS, "label"]),
        current=current_key_batches(delta_tables),
        splits=delta_tables.batches(IMAGE_SPLITS, [*IMAGE_KEYS, "duplicate_group"]),
    ) as connection:
        connection.execute(
            "CREATE TABLE images AS SELECT path, image_id, label, duplicate_group FROM featured "
            "JOIN current USING (path, image_id) LEFT JOIN splits USING (path, image_id)"
        )
        same, near = (
            connection.execute(
                f"SELECT {by}, count(*) AS files, list_sort(array_agg(path))[:{PATHS_PER_GROUP}] FROM images "
                f"WHERE {by} IN (SELECT {by} FROM images GROUP BY {by} HAVING {several}) GROUP BY {by} "
                f"ORDER BY files DESC, {by}"
            ).fetchall()
            for by, several in (
                ("image_id", "min(label) < max(label)"),
                ("duplicate_group", "min(label) < max(label) AND min(image_id) < max(image_id)"),
            )
        )
    return [Group(*row) for row in same], [Group(*row) for row in near]


@table_check(
    asset="featured_images",
    reads=[FEATURED_IMAGES, IMAGE_SPLITS, IMAGE_FILES],
    description=f"No image has two labels. If it fails: {LABEL_CONFLICTS_REMEDY}.",
)
def label_conflicts(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Identical current files with different labels; near duplicates are listed, but do not fail the check."""
    same, near = conflicting_labels(delta_tables)
    return dg.AssetCheckResult(
        passed=not same,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "images": len(same),
            "files": groups_table(same),
            "near_duplicate_groups": len(near),
            "near_duplicates": groups_table(near),
        },
        description=LABEL_CONFLICTS_REMEDY if same else None,
    )


@table_check(
    asset="image_splits",
    reads=[IMAGE_SPLITS, IMAGE_FILES],
    blocking=True,
    description="Every label has images in training, validation and test. Labels that do not are left out of training; "
    f"with fewer than two others, the check blocks it. If it fails: {MISSING_LABELS_REMEDY}.",
)
def labels_in_every_split(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The labels missing in each split; without images, their metrics would be meaningless."""
    assigned = current_assignments(delta_tables)
    missing = missing_labels(assigned)
    left = assigned["label"].nunique() - len(missing)
    names = {split: [found.label for found in missing if split in found.splits] for split in SPLITS}
    lacking = {f"lacking_in_{split}": ", ".join(labels) or "none" for split, labels in names.items()}
    effect = "these labels are left out of training" if left > 1 else f"{left} label(s) are left to train on"
    problem = f"{effect}:\n{to_bullets(missing)}\n\n{MISSING_LABELS_REMEDY}"
    passed = bool(len(assigned)) and not missing
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN if left > 1 else dg.AssetCheckSeverity.ERROR,
        metadata=lacking,
        description=None if passed else problem if missing else "no image has a label: add some",
    )


def leaks_result(found: Sequence[Leak], remedy: str, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    """The result of a check that finds these leaks."""
    records = [
        dg.TableRecord({"files": leak.files, **{split: "\n".join(leak.first_paths(split)) for split in SPLITS}})
        for leak in found[:LISTED_PROBLEMS]
    ]
    columns = [dg.TableColumn("files", "int"), *map(dg.TableColumn, SPLITS)]
    return dg.AssetCheckResult(
        passed=not found,
        severity=severity,
        metadata={"groups": len(found), "files": dg.MetadataValue.table(records, dg.TableSchema(columns))},
        description=f"{to_bullets(found)}\n\n{remedy}" if found else None,
    )


@table_check(
    asset="image_splits",
    name=LEAKS_CHECK,
    reads=LEAKS_READ,
    blocking=True,
    description="No image is in two splits, not even edited: resized, cropped, mirrored, rotated or brightened. "
    f"If it fails: {LEAKS_REMEDY}.",
)
def groups_in_one_split(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The groups of near duplicates in several splits, unless all their files are in folders that name the split."""
    _, found = given_and_other_leaks(delta_tables, current_assignments(delta_tables))
    return leaks_result(found, LEAKS_REMEDY, dg.AssetCheckSeverity.ERROR)
