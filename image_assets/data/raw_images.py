"""Each image file as it came, and the ledger of all files."""

import time
from collections.abc import Iterator, Sequence

import dagster as dg
from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from image_assets.contact_sheets import sheet_of_new
from image_assets.data.folder_changes import FolderChanges, folder_changes
from image_assets.data.image_files import NOT_REGULAR, Decision, Known, read_known, record, to_decision
from image_assets.data.judging import CURRENT, MISSING, PENDING, QUARANTINED, decoded, judge
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.arrow_rows import Row, map_rows
from resources.delta_tables import DeltaTables
from resources.image_file import ImageFile
from resources.image_folder import ImageFolder

CHUNK_BYTES, CHUNK_FILES = 1024**3, 20_000  # read and committed together; a killed run repeats at most this much
LISTED = "path string, modification_time timestamp, length long"
JUDGED = StructType([StructField(name, StringType()) for name in ("path", "state", "image_id", "reason", "message")])
THIN = ["path", "image_id", "length", "modification_time"]


class IngestConfig(dg.Config):
    """What a run looks at beside new files."""

    part: int | None = Field(
        default=None,
        ge=0,
        description="Which part of the known files is looked at again for replaced ones; all of them by default. "
        "The sensor names the part in which it found something.",
    )


def with_content(files: DataFrame, limit_bytes: int) -> DataFrame:
    """Rows of raw_images for those listed files whose header is an image's."""

    def read(file: Row) -> Iterator[Row]:
        judgement = judge(file["path"], file["length"], limit_bytes)
        if judgement.content is not None:
            yield {**file, "image_id": judgement.image_id, "content": judgement.content}

    return map_rows(files, read, RAW_IMAGES.columns)


def with_judgement(files: DataFrame, limit_bytes: int) -> DataFrame:
    """What a whole look says of each listed file, without its bytes."""

    def look(file: Row) -> Iterator[Row]:
        judgement = decoded(judge(file["path"], file["length"], limit_bytes))
        yield {"path": file["path"], **{name: getattr(judgement, name) for name in JUDGED.fieldNames()[1:]}}

    return map_rows(files, look, JUDGED)


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


def append_new(
    delta_tables: DeltaTables, files: Sequence[ImageFile], known: dict[str, Known], limit_bytes: int
) -> None:
    """Read files into raw_images; content that came before under the same path is not added again."""
    images = with_content(listed(delta_tables, files), limit_bytes)
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


def left_over(files: Sequence[ImageFile], before: dict[str, Known], now: dict[str, Known]) -> list[ImageFile]:
    """The files that were read and of which the ledger learned nothing: no image, gone, or bytes that came before."""

    def is_recorded(file: ImageFile) -> bool:
        known = now.get(file.path)
        return known is not None and known != before.get(file.path) and known.state == CURRENT and known.is_still(file)

    return [file for file in files if not is_recorded(file)]


def decide(delta_tables: DeltaTables, files: Sequence[ImageFile], limit_bytes: int) -> None:
    """Look again at the files that got no row, and record why.

    Bytes that have a row already go no further along the path, so their pixels are judged here.
    """
    by_path = {file.path: file for file in files}
    judged = with_judgement(listed(delta_tables, files), limit_bytes).collect()
    record(
        delta_tables,
        [to_decision(by_path[row.path], row.state, row.reason, row.message, row.image_id) for row in judged],
    )


def read_in(delta_tables: DeltaTables, files: Sequence[ImageFile], known: dict[str, Known], limit_bytes: int) -> None:
    """Read files into raw_images, and let the ledger say of each what became of it."""
    append_new(delta_tables, files, known, limit_bytes)
    take_up(delta_tables)
    unclear = left_over(files, known, read_known(delta_tables.thin))
    if unclear:
        decide(delta_tables, unclear, limit_bytes)


def ingest(
    delta_tables: DeltaTables, image_folder: ImageFolder, config: IngestConfig, log: dg.DagsterLogManager
) -> FolderChanges:
    """Bring raw_images and the ledger up to the folder; a run that was cut off is simply run again."""
    delta_tables.create(RAW_IMAGES)
    delta_tables.create(IMAGE_FILES)
    take_up(delta_tables)
    known = read_known(delta_tables.thin)
    changes = folder_changes(image_folder, known, config.part)
    log.info(
        f"{image_folder.root}: {changes.listed:,} files, {changes.looked_at:,} looked at, "
        f"{len(changes.to_read):,} new or changed, {len(changes.missing):,} gone"
    )
    whole = image_folder.settled(changes.to_read)
    record(delta_tables, unread(changes, set(whole)))
    done, started = 0, time.monotonic()
    for chunk in chunked(whole):
        read_in(delta_tables, chunk, known, image_folder.content_limit_bytes)
        done += len(chunk)
        log.info(f"read {done:,} of {len(whole):,} files, {done / (time.monotonic() - started):,.0f} a second")
    return changes


def unread(changes: FolderChanges, whole: set[ImageFile]) -> list[Decision]:
    """What is said of files without reading them."""
    writing = [file for file in changes.to_read if file not in whole]
    return [
        *(to_decision(file, PENDING, "being_written", "changed within the settle period", None) for file in writing),
        *(
            to_decision(file, QUARANTINED, NOT_REGULAR, "a link, pipe or device: never opened", None)
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
    context: dg.AssetExecutionContext, config: IngestConfig, delta_tables: DeltaTables, image_folder: ImageFolder
) -> Iterator[dg.MaterializeResult]:
    """The landing folder, listed and compared with the ledger; exactly the new and changed files are read."""
    files_before, images_before = delta_tables.snapshot(IMAGE_FILES), delta_tables.snapshot(RAW_IMAGES)
    changes = ingest(delta_tables, image_folder, config, context.log)
    delta_tables.compact(RAW_IMAGES)
    delta_tables.compact(IMAGE_FILES)
    states = delta_tables.read(IMAGE_FILES).groupBy("state").count().collect()
    yield delta_tables.materialized(
        IMAGE_FILES,
        delta_tables.change_since(files_before, IMAGE_FILES),
        **{f"files_{row['state']}": row["count"] for row in states},
        files_listed=changes.listed,
    )
    change = delta_tables.change_since(images_before, RAW_IMAGES)
    yield delta_tables.materialized(RAW_IMAGES, change, **sheet_of_new(delta_tables, RAW_IMAGES, change))
