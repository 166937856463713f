"""Every version of every image file, unchanged; its op also updates the ledger.

A replaced file gets a new row with a new image_id. The old row stays, and the ledger points to the new one.
"""

import time
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter

import dagster as dg
from pydantic import Field

from image_assets.data.folder_changes import FolderChanges, folder_changes, remember_device, require_plausible
from image_assets.data.folder_layout import read_layout, record_splits
from image_assets.data.image_files import (
    EXCLUDED,
    NOT_REGULAR,
    Decision,
    image_files,
    merge_decisions,
    quarantine_metadata,
    read_ledger,
    to_decision,
)
from image_assets.data.ingestion import chunked, read_chunk, size_of, unrecorded_rows
from image_assets.data.inspection import MISSING, PENDING, QUARANTINED
from image_assets.data.new_images_sheet import new_images_metadata
from image_assets.data.replayed_files import replay, replay_result, replayed_files
from image_assets.schemas import IMAGE_FILES, PREDICTED_FIRST, RAW_IMAGES, REPLAYED_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.delta.unchanged import describe_once
from resources.files.file_system import ImageFile
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.listing import Skipped

IRREGULAR_MESSAGE = (
    "a link, pipe or device; only regular files are opened. To follow links, name the folders that they lead to in "
    "IMAGE_ASSETS_LINK_ROOTS; each folder is listed once"
)
EXCLUDED_MESSAGE = "IMAGE_ASSETS_INCLUDE, IMAGE_ASSETS_EXCLUDE or IMAGE_ASSETS_LITTER now excludes this file"
LISTED_SKIPPED = 100  # kinds
TRIGGER_TAG = "image_assets/trigger"  # on continuous runs: how often they check for new work


class IngestConfig(dg.Config):
    """Which known files a run checks in addition to new ones."""

    part: int | None = Field(
        default=None,
        ge=0,
        description="Which slice of the known files to check for in-place changes; default all. Set by the sensor.",
    )
    paths: list[str] = Field(
        default=[],
        description="Check only these files, named as in `image_files`, without listing the folder; default all. "
        "Set by the sensor `storage_events`.",
    )
    accept_missing: bool = Field(
        default=False,
        description="Believe that files are deleted, however many are missing. Without it, a run fails before it "
        "changes anything if the folder is empty or lacks more than 10 % and more than 20 of its current files.",
    )
    replay_reason: str = Field(
        default="",
        description="Check quarantined files again if their reason matches this pattern; `*` matches every reason.",
    )
    replay_path: str = Field(
        default="",
        description="Check quarantined files again if their path in the landing folder matches this pattern, such as "
        "`roses/*`. With a reason, both must match.",
    )


def ingest(
    delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig, log: dg.DagsterLogManager
) -> FolderChanges:
    """Brings raw_images and the ledger up to date with the folder; run it again after an interruption.

    Raises:
        FolderUnavailable: Nothing was written: the folder cannot be listed, or lacks too many files to be believed.
    """
    unrecorded, version = unrecorded_rows(delta_tables)
    ledger = read_ledger(delta_tables).recorded(unrecorded)
    changes = folder_changes(image_folder, ledger, config.part, config.paths)
    log.info(f"{image_folder.root}: {changes}")
    if skipped := str(changes.skipped):
        log.info(f"skipped {skipped}")
    if not config.accept_missing:
        require_plausible(changes, image_folder, delta_tables)
    # In the order of paths, so that each commit covers a range of them, and later ones need not read it.
    settled = sorted(image_folder.settled(changes.to_read), key=attrgetter("path"))
    delta_tables.create(REPLAYED_FILES)
    merge_decisions(delta_tables, unrecorded, version)
    remember_device(delta_tables, image_folder)
    merge_decisions(delta_tables, decisions_without_reading(changes, set(settled)), version)
    started = time.monotonic()
    if settled:
        executor = executor_for(delta_tables.pyspark, size_of(settled))
        with delta_tables.progress_line("read", len(settled), "files") as progress:
            for chunk in chunked(settled):
                read_chunk(delta_tables, image_folder, chunk, ledger, executor, progress)
        log.info(f"read {len(settled):,} files, {len(settled) / (time.monotonic() - started):,.0f} per second")
    if record_splits(delta_tables, image_folder):
        log.warning(
            f"From now on, {read_layout(delta_tables, image_folder)}. Labels and splits of existing images follow. "
            "IMAGE_ASSETS_SPLIT_FOLDERS=off or =on decides otherwise"
        )
    return changes


def decisions_without_reading(changes: FolderChanges, settled: set[ImageFile]) -> list[Decision]:
    """The decisions about files that need not be read."""
    unsettled = [file for file in changes.to_read if file not in settled]
    return [
        *(to_decision(file, PENDING, "being_written", "changed within the settle period", None) for file in unsettled),
        *(to_decision(file, QUARANTINED, NOT_REGULAR, IRREGULAR_MESSAGE, None) for file in changes.irregular),
        *changes.unreadable,
        *(Decision(path, MISSING, EXCLUDED, EXCLUDED_MESSAGE) for path in changes.excluded),
        *(Decision(path, MISSING) for path in changes.missing),
    ]


def skipped_metadata(skipped: Skipped) -> dict[str, dg.MetadataValue]:
    """Metadata with what the listing left out, most frequent first; empty if it left out nothing."""
    rows = skipped.rows()
    records = [dg.TableRecord({"name": name, "skipped": what, "count": count}) for name, what, count in rows]
    return {"skipped": dg.MetadataValue.table(records[:LISTED_SKIPPED])} if rows else {}


def states_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of files in each state."""
    states = Counter(delta_tables.read(IMAGE_FILES, ["state"])["state"].to_pylist())
    return {f"files_{state}": dg.MetadataValue.int(count) for state, count in sorted(states.items())}


def is_continuous(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run goes on with another pass after this one."""
    run = instance.get_run_by_id(run_id)
    return run is not None and TRIGGER_TAG in run.tags


@dg.multi_asset(
    specs=[
        image_files,
        replayed_files,
        dg.AssetSpec(
            "raw_images",
            description="Every version of every image file, unchanged: path, time, length, content and its SHA-256.",
            kinds={"pyspark", "deltalake"},
        ),
    ],
    pool="image_files",
    op_tags=PREDICTED_FIRST,
)
def raw_images(
    context: dg.AssetExecutionContext, config: IngestConfig, delta_tables: DeltaTables, image_folder: ImageFolder
) -> Iterator[dg.MaterializeResult]:
    """Compares the landing folder with the ledger, and reads the new and changed files."""
    files_before, images_before = delta_tables.snapshot(IMAGE_FILES), delta_tables.snapshot(RAW_IMAGES)
    changes = None
    try:
        changes = ingest(delta_tables, image_folder, config, context.log)
    except FolderUnavailable as error:
        if not is_continuous(context.instance, context.run.run_id):
            raise
        context.log.warning(f"This pass ingests no files. {error}")
    if changes and (config.replay_reason or config.replay_path):
        before = delta_tables.snapshot(REPLAYED_FILES)
        files = replay(delta_tables, image_folder, reason=config.replay_reason, path=config.replay_path)
        yield replay_result(delta_tables, before, files)
    delta_tables.compact(RAW_IMAGES)
    delta_tables.compact(IMAGE_FILES)
    described = describe_once(
        delta_tables,
        IMAGE_FILES.name,
        lambda: states_metadata(delta_tables) | quarantine_metadata(delta_tables, image_folder.real_link_roots),
        tables=[IMAGE_FILES],
    )
    yield delta_tables.materialized(
        IMAGE_FILES,
        delta_tables.change_since(files_before, IMAGE_FILES),
        files_listed=changes.listed if changes else 0,
        folder_layout=str(read_layout(delta_tables, image_folder)),
        **(skipped_metadata(changes.skipped) if changes else {}),
        **described,
    )
    change = delta_tables.change_since(images_before, RAW_IMAGES)
    sheet = describe_once(
        delta_tables,
        RAW_IMAGES.name,
        lambda: new_images_metadata(delta_tables, RAW_IMAGES, change),
        tables=[RAW_IMAGES],
    )
    yield delta_tables.materialized(RAW_IMAGES, change, **sheet)
