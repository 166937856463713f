"""Reads listed files into raw_images and records the result in the ledger."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from image_assets.data.image_files import (
    IMAGE_KEYS,
    SEEN_BEFORE,
    Decision,
    Ledger,
    merge_decisions,
    recorded_version,
    to_decision,
)
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED, Inspection, decode_features, inspect_file
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits
from image_assets.images.pixels import Reading
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import REPAIR_JOB, LostTable
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import Executor
from resources.delta.following import added_rows
from resources.delta.local_tasks import counted
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.table import FileSizes, file_layout
from resources.files.file_system import ImageFile, OpenFolders
from resources.files.image_folder import ImageFolder
from resources.progress import ProgressLine

CHUNK_BYTES, CHUNK_FILES = 1024**3, 20_000  # per commit; a killed run repeats at most this much
LEDGER_COLUMNS = ["path", "image_id", "length", "modification_time"]


class ReadResult(NamedTuple):
    """The inspection of each file by path, the paths that got a row, and the version of raw_images afterwards."""

    inspections: dict[str, Inspection]
    added: set[str]
    raw_images_version: int


def to_limits(image_folder: ImageFolder) -> Limits:
    """The limits in the landing folder's settings."""
    return Limits(
        content_bytes=image_folder.content_limit_bytes,
        size_bytes=image_folder.size_limit_bytes,
        seconds=image_folder.decode_seconds,
        memory_bytes=image_folder.decode_memory_bytes,
        link_roots=image_folder.real_link_roots,
        reading=Reading(image_folder.page, image_folder.pixel_limit),
    )


def read_chunk(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    files: Sequence[ImageFile],
    ledger: Ledger,
    executor: Executor,
    progress: ProgressLine,
) -> None:
    """Reads files into raw_images and records the result for each in the ledger."""
    result = append_new_files(delta_tables, files, ledger, to_limits(image_folder), executor, progress)
    decided: list[Decision] = []
    seen_again: list[ImageFile] = []  # images that already have a row
    for file in files:
        inspection = result.inspections[file.path]
        if inspection.state == MISSING:
            continue  # the next run lists the folder again, and judges whether to believe it
        if inspection.state == CURRENT and file.path not in result.added:
            seen_again.append(file)
        else:
            decided.append(
                to_decision(file, inspection.state, inspection.reason, inspection.message, inspection.image_id)
            )
    merge_decisions(delta_tables, decided, result.raw_images_version)
    if seen_again:
        decide_by_decoding(delta_tables, image_folder, seen_again, result.raw_images_version, executor)


def append_new_files(
    delta_tables: DeltaTables,
    files: Sequence[ImageFile],
    ledger: Ledger,
    limits: Limits,
    executor: Executor,
    progress: ProgressLine,
) -> ReadResult:
    """Reads files into raw_images, in one commit; content that already has a row for its path is skipped.

    Each task writes the images that it reads into the table's folder, so no image is sent between processes.
    """
    delta_tables.create(RAW_IMAGES)
    folder, layout = delta_tables.uri(RAW_IMAGES), file_layout(RAW_IMAGES)
    seen = seen_before(delta_tables, [*ledger.named(file.path for file in files)])

    def write_parts(
        parts: Iterable[list[ImageFile]],
    ) -> Iterator[tuple[list[WrittenFile], set[str], dict[str, Inspection]]]:
        for part in parts:
            added: set[str] = set()
            inspections: dict[str, Inspection] = {}
            yield list(write_files(images(part, added, inspections), folder, layout)), added, inspections

    def images(files: list[ImageFile], added: set[str], inspections: dict[str, Inspection]) -> Iterator[Row]:
        with OpenFolders() as open_folders:
            for file in counted(files):
                inspection = inspect_file(file.path, file.length, limits, open_folders)
                inspections[file.path] = replace(inspection, content=None)
                if inspection.state == CURRENT and inspection.image_id not in seen.get(file.path, ()):
                    added.add(file.path)
                    yield {
                        "path": file.path,
                        "modification_time": file.modification_time,
                        "length": file.length,
                        "image_id": inspection.image_id,
                        "content": inspection.content,
                    }

    # No more parts than files of a good size: a part is a Parquet file at least.
    parts = balanced(files, executor.task_count(size_of(files) // FileSizes.minimum_bytes))
    found = executor.run(write_parts, parts, progress, rows=len(files))
    written = [file for files_of_part, _, _ in found for file in files_of_part]
    return ReadResult(
        inspections={path: inspection for _, _, inspections in found for path, inspection in inspections.items()},
        added={path for _, added, _ in found for path in added},
        raw_images_version=delta_tables.append_files(RAW_IMAGES, written),
    )


def seen_before(delta_tables: DeltaTables, paths: Sequence[str]) -> dict[str, set[str]]:
    """The image_ids in raw_images for each of the paths."""
    seen: dict[str, set[str]] = defaultdict(set)
    if paths:
        rows = delta_tables.read(RAW_IMAGES, IMAGE_KEYS, pc.field("path").isin(paths))
        for row in rows.to_pylist():
            seen[row["path"]].add(row["image_id"])
    return dict(seen)


def balanced(files: Sequence[ImageFile], parts: int) -> list[list[ImageFile]]:
    """The files, in order, in at most `parts` lists of about equal bytes."""
    total = sum(file.length + 1 for file in files)
    lists: dict[int, list[ImageFile]] = defaultdict(list)
    before = 0
    for file in files:
        lists[before * parts // total].append(file)
        before += file.length + 1
    return list(lists.values())


def size_of(files: Iterable[ImageFile]) -> int:
    """The bytes of the files together."""
    return sum(file.length for file in files)


def inspect_by_decoding(files: Iterable[ImageFile], limits: Limits) -> Iterator[tuple[ImageFile, Inspection]]:
    """The result of inspecting and decoding each file, without content."""
    decode = partial(decode_features, reading=limits.reading)
    with GuardedProcess(decode, memory_bytes=limits.memory_bytes) as guarded:
        for file in counted(files):
            inspection = inspect_file(file.path, file.length, limits)
            image = {"path": file.path, "length": file.length, "content": inspection.content}
            inspection = replace(inspection, content=None)
            if inspection.state == CURRENT:
                found = guarded.run(image, cpu_seconds=limits.seconds_for(file.length))
                if isinstance(found, ItemFailure):
                    inspection = replace(inspection, state=QUARANTINED, reason=found.reason, message=found.message)
            yield file, inspection


def chunked(files: Sequence[ImageFile]) -> Iterator[list[ImageFile]]:
    """The files in lists of about CHUNK_BYTES and at most CHUNK_FILES, each to be committed at once."""
    chunk: list[ImageFile] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.length
        if size >= CHUNK_BYTES or len(chunk) >= CHUNK_FILES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def unrecorded_rows(delta_tables: DeltaTables) -> tuple[list[Decision], int]:
    """Decisions about rows of raw_images whose run was interrupted before it updated the ledger.

    Returns:
        The decisions, and the version of raw_images that the ledger covers with them.
    """
    images, recorded = delta_tables.snapshot(RAW_IMAGES), recorded_version(delta_tables)
    if not images.rows and (current := delta_tables.read_keys(IMAGE_FILES, pc.field("state") == CURRENT)):
        raise LostTable(
            f"raw_images has no rows, but image_files has {len(current):,} current files: restore the folder "
            f"{delta_tables.uri(RAW_IMAGES)} from a backup, or launch the job {REPAIR_JOB}"
        )
    rows = None if recorded is None else added_rows(delta_tables, RAW_IMAGES, recorded, LEDGER_COLUMNS)
    if rows is None:
        ledger = pa.array(delta_tables.read(IMAGE_FILES, ["path"])["path"].to_pylist(), pa.string())
        rows = delta_tables.read(RAW_IMAGES, LEDGER_COLUMNS, ~pc.field("path").isin(ledger))
    newest = {row["path"]: row for row in sorted(rows.to_pylist(), key=lambda row: row["modification_time"])}
    return [Decision(state=CURRENT, **row) for row in newest.values()], images.version


def decide_by_decoding(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    files: Sequence[ImageFile],
    raw_images_version: int,
    executor: Executor,
) -> None:
    """Decode files whose bytes already have a row in raw_images, and record the result in the ledger.

    featured_images has followed past these rows, and lacks those it could not decode then, for example before a limit
    was raised. The ledger marks the images among them, and featured_images reads the marks.
    """
    limits = to_limits(image_folder)

    def inspect_parts(parts: Iterable[list[ImageFile]]) -> Iterator[tuple[ImageFile, Inspection]]:
        for part in parts:
            yield from inspect_by_decoding(part, limits)

    decisions = [
        to_decision(
            file, found.state, found.reason, SEEN_BEFORE if found.state == CURRENT else found.message, found.image_id
        )
        for file, found in executor.run(inspect_parts, balanced(files, executor.task_count(0)))
        if found.state != MISSING  # as in read_chunk
    ]
    merge_decisions(delta_tables, decisions, raw_images_version)
