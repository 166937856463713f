"""Each image file as it came, and the ledger of all files."""

from collections.abc import Iterable, Iterator, Sequence

import dagster as dg
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from image_assets.contact_sheets import sheet_of_new
from image_assets.data.image_files import (
    Decision,
    FolderChanges,
    Known,
    compare,
    read_known,
    record,
    to_decision,
    to_microseconds,
)
from image_assets.data.judging import CURRENT, MISSING, PENDING, QUARANTINED, Limits, decoded, judge
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.arrow_rows import Row, map_partitions, map_rows
from resources.delta_tables import DeltaTables
from resources.file_system import ImageFile, fingerprint
from resources.image_folder import ImageFolder

CHUNK_BYTES = 1024**3  # read and committed together; a killed run repeats at most this much
LISTED = "path string, modification_time timestamp, length long"
JUDGED = StructType([StructField(name, StringType()) for name in ("path", "state", "image_id", "reason", "message")])
THIN = ["path", "image_id", "length", "modification_time"]


def to_limits(image_folder: ImageFolder) -> Limits:
    """What the landing folder's settings say of each file."""
    return Limits(
        content_bytes=image_folder.content_limit_bytes,
        size_bytes=image_folder.size_limit_bytes,
        seconds=image_folder.decode_seconds,
        memory_bytes=image_folder.decode_memory_bytes,
    )


def with_content(files: DataFrame, limits: Limits) -> DataFrame:
    """Rows of raw_images for those listed files that begin like an image; content is null above its limit."""

    def read(file: Row) -> Iterator[Row]:
        judgement = judge(file["path"], file["length"], limits)
        if judgement.state == CURRENT:
            yield {**file, "image_id": judgement.image_id, "content": judgement.content}

    return map_rows(files, read, RAW_IMAGES.columns)


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
    """The files in lists of about CHUNK_BYTES, so that each is one commit of bounded size."""
    chunk: list[ImageFile] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.length
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def listed(delta_tables: DeltaTables, files: Sequence[ImageFile]) -> DataFrame:
    """The files as rows, spread over as many tasks as run at once."""
    rows = [(file.path, file.modification_time, file.length) for file in files]
    tasks = min(len(rows), delta_tables.spark.sparkContext.defaultParallelism)
    return delta_tables.spark.createDataFrame(rows, LISTED).repartition(tasks)


def append_new(delta_tables: DeltaTables, files: Sequence[ImageFile], known: dict[str, Known], limits: Limits) -> None:
    """Read files into raw_images; content that came before under the same path is not added again."""
    images = with_content(listed(delta_tables, files), limits)
    seen_before = [(file.path,) for file in files if file.path in known]
    if seen_before:
        paths = F.broadcast(delta_tables.spark.createDataFrame(seen_before, "path string"))
        keys = delta_tables.read(RAW_IMAGES).select("path", "image_id").join(paths, on="path", how="left_semi")
        images = images.join(F.broadcast(keys), on=["path", "image_id"], how="left_anti")
    delta_tables.append(images, RAW_IMAGES)


def take_up(delta_tables: DeltaTables) -> None:
    """Let the ledger follow raw_images: what got a row there is current."""

    def make_current(batch: DataFrame, _: tuple[str, int]) -> None:
        newest = F.max_by(F.struct("image_id", "length", "modification_time"), "modification_time").alias("newest")
        none = F.lit(None).cast("string")
        images = batch.groupBy("path").agg(newest).select("path", "newest.*")
        record(delta_tables, images.withColumns({"state": F.lit(CURRENT), "reason": none, "message": none}))

    delta_tables.for_each_batch(RAW_IMAGES, THIN, "image_files", make_current)


def left_over(files: Sequence[ImageFile], known: dict[str, Known]) -> list[ImageFile]:
    """The files that were read and got no row: not an image, gone, changed, or the same bytes as before."""
    return [
        file
        for file in files
        if (now := known.get(file.path)) is None
        or (now.state, now.modified_microseconds, now.length)
        != (CURRENT, to_microseconds(file.modification_time), file.length)
    ]


def decide(delta_tables: DeltaTables, files: Sequence[ImageFile], limits: Limits) -> None:
    """Look again at the files that got no row, and record why.

    Bytes that have a row already go no further along the path, so their pixels are judged here.
    """
    by_path = {file.path: file for file in files}
    judged = with_judgement(listed(delta_tables, files), limits).collect()
    record(
        delta_tables,
        [to_decision(by_path[row.path], row.state, row.reason, row.message, row.image_id) for row in judged],
    )


def ingest(delta_tables: DeltaTables, image_folder: ImageFolder, log: dg.DagsterLogManager) -> str:
    """Bring raw_images and the ledger up to the folder; a run that was cut off is simply run again.

    Returns the fingerprint of what was taken in: files that are still being written are not part of it.
    """
    delta_tables.create(RAW_IMAGES)
    take_up(delta_tables)
    known = read_known(delta_tables)
    files = image_folder.list_files()
    changes = compare(files, known)
    log.info(
        f"{image_folder.root}: {len(files):,} files, {len(changes.to_read):,} new or changed, "
        f"{len(changes.missing):,} gone"
    )
    whole = image_folder.settled(changes.to_read)
    record(delta_tables, unread(changes, set(whole)))
    limits = to_limits(image_folder)
    done = 0
    for chunk in chunked(whole):
        append_new(delta_tables, chunk, known, limits)
        take_up(delta_tables)
        decide_left_over = left_over(chunk, read_known(delta_tables))
        if decide_left_over:
            decide(delta_tables, decide_left_over, limits)
        done += len(chunk)
        log.info(f"read {done:,} of {len(whole):,} files")
    writing = set(changes.to_read) - set(whole)
    return fingerprint(file for file in files if file not in writing)


def unread(changes: FolderChanges, whole: set[ImageFile]) -> list[Decision]:
    """What is said of files without reading them."""
    writing = [file for file in changes.to_read if file not in whole]
    return [
        *(to_decision(file, PENDING, "being_written", "changed within the settle period", None) for file in writing),
        *(
            to_decision(file, QUARANTINED, "not_regular", "a link, pipe or device: never opened", None)
            for file in changes.irregular
        ),
        *(Decision(path, MISSING) for path in changes.missing),
    ]


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "image_files",
            description="Every file ever seen in the landing folder: current, pending, quarantined (and why), missing.",
            kinds={"pyspark", "deltalake"},
        ),
        dg.AssetSpec(
            "raw_images",
            description="Each image file as it came: path, time, length, the SHA-256 of its content, and the content.",
            kinds={"pyspark", "deltalake"},
        ),
    ],
    pool="image_files",
)
def raw_images(
    context: dg.AssetExecutionContext, delta_tables: DeltaTables, image_folder: ImageFolder
) -> Iterator[dg.MaterializeResult]:
    """The landing folder, listed and compared with the ledger; exactly the new and changed files are read."""
    files_before, images_before = delta_tables.snapshot(IMAGE_FILES), delta_tables.snapshot(RAW_IMAGES)
    taken_in = ingest(delta_tables, image_folder, context.log)
    delta_tables.compact(RAW_IMAGES)
    states = delta_tables.read(IMAGE_FILES).groupBy("state").count().collect()
    yield delta_tables.materialized(
        IMAGE_FILES,
        delta_tables.change_since(files_before, IMAGE_FILES),
        **{f"files_{row['state']}": row["count"] for row in states},
        folder_fingerprint=taken_in,
    )
    change = delta_tables.change_since(images_before, RAW_IMAGES)
    yield delta_tables.materialized(RAW_IMAGES, change, **sheet_of_new(delta_tables, RAW_IMAGES, change))
