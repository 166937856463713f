"""Listed files read into raw_images, and what the ledger says of each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.types import StringType, StructField, StructType

from image_assets.data.featured_images import take_in_again
from image_assets.data.folder_changes import to_limits
from image_assets.data.image_files import Decision, Known, record, recorded_version, to_decision
from image_assets.data.inspection import CURRENT, QUARANTINED, Judgement, decoded, judge
from image_assets.images.isolated_process import Failure, GuardedProcess
from image_assets.images.large_images import Limits
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.delta.arrow_rows import Row, map_partitions
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.table_layout import file_layout
from resources.delta.task_counts import NOT_COUNTED, TaskCounter
from resources.delta.thin_tables import ThinTables
from resources.files.image_file import ImageFile
from resources.files.image_folder import ImageFolder

CHUNK_BYTES, CHUNK_FILES = 1024**3, 20_000  # read and committed together; a killed run repeats at most this much
LISTED = "path string, modification_time timestamp, length long"
JUDGED = StructType([StructField(name, StringType()) for name in ("path", "state", "image_id", "reason", "message")])
THIN = ["path", "image_id", "length", "modification_time"]


class FirstLook(NamedTuple):
    """What reading files found: of each a judgement, which of them got a row, and the version of raw_images then."""

    judgements: dict[str, Judgement]
    added: set[str]
    raw_images_version: int


def read_in(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    files: Sequence[ImageFile],
    known: Mapping[str, Known],
    counter: TaskCounter,
) -> None:
    """Read files into raw_images, and let the ledger say of each what became of it."""
    look = append_new(delta_tables, files, known, to_limits(image_folder), counter)
    decided: list[Decision] = []
    again: list[ImageFile] = []  # images that have their row already
    for file in files:
        judgement = look.judgements[file.path]
        if judgement.state == CURRENT and file.path not in look.added:
            again.append(file)
        else:
            decided.append(to_decision(file, judgement.state, judgement.reason, judgement.message, judgement.image_id))
    record(delta_tables.thin, decided, look.raw_images_version)
    if again:
        decide(delta_tables, image_folder, again, look.raw_images_version)


def append_new(
    delta_tables: DeltaTables,
    files: Sequence[ImageFile],
    known: Mapping[str, Known],
    limits: Limits,
    counter: TaskCounter = NOT_COUNTED,
) -> FirstLook:
    """Read files into raw_images, in one commit; content that came before under the same path is not added again.

    Each task writes the images that it reads into the table's folder, so that no image travels between processes.
    """
    delta_tables.create(RAW_IMAGES)
    folder, layout = delta_tables.uri(RAW_IMAGES), file_layout(RAW_IMAGES)
    seen = seen_before(delta_tables.thin, [file.path for file in files if file.path in known])

    def look(parts: Iterable[list[ImageFile]]) -> Iterator[tuple[list[WrittenFile], set[str], dict[str, Judgement]]]:
        for part in parts:
            added: set[str] = set()
            judgements: dict[str, Judgement] = {}
            yield list(write_files(images(part, added, judgements), folder, layout)), added, judgements

    def images(files: list[ImageFile], added: set[str], judgements: dict[str, Judgement]) -> Iterator[Row]:
        for file in counter.over(files):
            judgement = judge(file.path, file.length, limits)
            judgements[file.path] = replace(judgement, content=None)
            if judgement.state == CURRENT and judgement.image_id not in seen.get(file.path, ()):
                added.add(file.path)
                yield {
                    "path": file.path,
                    "modification_time": file.modification_time,
                    "length": file.length,
                    "image_id": judgement.image_id,
                    "content": judgement.content,
                }

    executors = delta_tables.spark.sparkContext
    parts = balanced(files, executors.defaultParallelism)
    found = executors.parallelize(parts, len(parts)).mapPartitions(look).collect()
    written = [file for files_of_part, _, _ in found for file in files_of_part]
    return FirstLook(
        judgements={path: judgement for _, _, judgements in found for path, judgement in judgements.items()},
        added={path for _, added, _ in found for path in added},
        raw_images_version=delta_tables.thin.append_files(RAW_IMAGES, written),
    )


def seen_before(thin_tables: ThinTables, paths: Sequence[str]) -> dict[str, set[str]]:
    """The image_ids that have a row of raw_images under each of the paths."""
    seen: dict[str, set[str]] = defaultdict(set)
    if paths:
        rows = thin_tables.read(RAW_IMAGES, ["path", "image_id"], pc.field("path").isin(paths))
        for row in rows.to_pylist():
            seen[row["path"]].add(row["image_id"])
    return dict(seen)


def balanced(files: Sequence[ImageFile], parts: int) -> list[list[ImageFile]]:
    """The files, in their order, in at most so many lists of about as many bytes each."""
    total = sum(file.length + 1 for file in files)
    lists: dict[int, list[ImageFile]] = defaultdict(list)
    before = 0
    for file in files:
        lists[before * parts // total].append(file)
        before += file.length + 1
    return list(lists.values())


def with_judgement(files: DataFrame, limits: Limits) -> DataFrame:
    """What a whole look says of each listed file, without its bytes."""

    def look(listed: Iterable[Row]) -> Iterator[Row]:
        with GuardedProcess(decoded, memory_bytes=limits.memory_bytes) as guarded:
            for file in listed:
                judgement = judge(file["path"], file["length"], limits)
                said = {name: getattr(judgement, name) for name in JUDGED.fieldNames()[1:]}
                if judgement.state == CURRENT:
                    image = {**file, "content": judgement.content}
                    found = guarded.answer(image, seconds=limits.seconds_for(file["length"]))
                    if isinstance(found, Failure):
                        said |= {"state": QUARANTINED, "reason": found.reason, "message": found.message}
                yield {"path": file["path"], **said}

    return map_partitions(files, look, JUDGED)


def chunked(files: Sequence[ImageFile]) -> Iterator[list[ImageFile]]:
    """The files in lists of about CHUNK_BYTES and at most CHUNK_FILES, so that each is one commit of bounded size."""
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


def listed(delta_tables: DeltaTables, files: Sequence[ImageFile]) -> DataFrame:
    """The files as rows, spread over as many tasks as run at once."""
    rows = [(file.path, file.modification_time, file.length) for file in files]
    tasks = min(len(rows), delta_tables.spark.sparkContext.defaultParallelism)
    return delta_tables.spark.createDataFrame(rows, LISTED).repartition(tasks)


def take_up(thin_tables: ThinTables) -> int:
    """Let the ledger learn of the rows that raw_images got from a run which was cut off before the ledger's commit.

    The version of raw_images that the ledger speaks of then.
    """
    version, recorded = thin_tables.snapshot(RAW_IMAGES).version, recorded_version(thin_tables)
    if recorded is None and thin_tables.snapshot(IMAGE_FILES).rows:
        return version  # of before commits said it
    rows = thin_tables.added_since(RAW_IMAGES, recorded or 0, THIN)
    if rows is None:
        known = thin_tables.read(IMAGE_FILES, ["path"])["path"]
        rows = thin_tables.read(RAW_IMAGES, THIN, ~pc.field("path").isin(known))
    record(thin_tables, [Decision(state=CURRENT, **row) for row in rows.to_pylist()], version)
    return version


def decide(
    delta_tables: DeltaTables, image_folder: ImageFolder, files: Sequence[ImageFile], raw_images_version: int
) -> None:
    """Take a whole look at the files, and record what it says.

    Bytes that have a row already go no further along the path by themselves. Where they are an image after all, as
    after a limit was raised, featured_images gets their row now; the ledger says so last, and a killed run looks again.
    """
    by_path = {file.path: file for file in files}
    judged = with_judgement(listed(delta_tables, files), to_limits(image_folder)).collect()
    take_in_again(delta_tables, image_folder, {row.path: row.image_id for row in judged if row.state == CURRENT})
    record(
        delta_tables.thin,
        [to_decision(by_path[row.path], row.state, row.reason, row.message, row.image_id) for row in judged],
        raw_images_version,
    )
