"""Listed files read into raw_images, and what the ledger says of each."""

from collections.abc import Iterable, Iterator, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from image_assets.data.featured_images import take_in_again
from image_assets.data.image_files import Known, read_known, record, to_decision
from image_assets.data.judging import CURRENT, QUARANTINED, Limits, decoded, judge
from image_assets.data.limits import to_limits
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.schemas import RAW_IMAGES
from resources.arrow_rows import Row, map_partitions, map_rows
from resources.delta_tables import DeltaTables
from resources.image_file import ImageFile
from resources.image_folder import ImageFolder

CHUNK_BYTES, CHUNK_FILES = 1024**3, 20_000  # read and committed together; a killed run repeats at most this much
LISTED = "path string, modification_time timestamp, length long"
JUDGED = StructType([StructField(name, StringType()) for name in ("path", "state", "image_id", "reason", "message")])
THIN = ["path", "image_id", "length", "modification_time"]


def read_in(
    delta_tables: DeltaTables, image_folder: ImageFolder, files: Sequence[ImageFile], known: dict[str, Known]
) -> None:
    """Read files into raw_images, and let the ledger say of each what became of it."""
    append_new(delta_tables, files, known, to_limits(image_folder))
    take_up(delta_tables)
    unclear = left_over(files, known, read_known(delta_tables.thin))
    if unclear:
        decide(delta_tables, image_folder, unclear)


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


def left_over(files: Sequence[ImageFile], before: dict[str, Known], now: dict[str, Known]) -> list[ImageFile]:
    """The files that were read and of which the ledger learned nothing: no image, gone, or bytes that came before."""

    def is_recorded(file: ImageFile) -> bool:
        known = now.get(file.path)
        return known is not None and known != before.get(file.path) and known.state == CURRENT and known.is_still(file)

    return [file for file in files if not is_recorded(file)]


def decide(delta_tables: DeltaTables, image_folder: ImageFolder, files: Sequence[ImageFile]) -> None:
    """Take a whole look at the files, and record what it says.

    Bytes that have a row already go no further along the path by themselves. Where they are an image after all, as
    after a limit was raised, featured_images gets their row now; the ledger says so last, and a killed run looks again.
    """
    by_path = {file.path: file for file in files}
    judged = with_judgement(listed(delta_tables, files), to_limits(image_folder)).collect()
    take_in_again(delta_tables, image_folder, {row.path: row.image_id for row in judged if row.state == CURRENT})
    record(
        delta_tables,
        [to_decision(by_path[row.path], row.state, row.reason, row.message, row.image_id) for row in judged],
    )
