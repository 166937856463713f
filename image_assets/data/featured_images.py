"""What can be read off each image: label, size, mode, format, perceptual hash."""

from collections.abc import Iterable, Iterator, Mapping

import dagster as dg
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.contact_sheets import sheet_of_new
from image_assets.data.image_files import record
from image_assets.data.judging import CURRENT, QUARANTINED, Limits, decoded
from image_assets.data.limits import to_limits
from image_assets.data.quarantine_sheets import quarantine_look
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.arrow_rows import Row, map_partitions
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder
from resources.tables import Change

FEATURES = ("width", "height", "mode", "format", "orientation", "perceptual_hash", "decode_warning")
JUDGED = StructType(
    [FEATURED_IMAGES.columns[name] for name in ("path", "image_id", *FEATURES)]
    + [IMAGE_FILES.columns[name] for name in ("reason", "message")]
)


def with_features(images: DataFrame, limits: Limits) -> DataFrame:
    """Features of each image by its path and image_id, or the reason why its pixels cannot be decoded."""

    def features(partition: Iterable[Row]) -> Iterator[Row]:
        with GuardedProcess(decoded, memory_bytes=limits.memory_bytes) as guarded:
            for image in partition:
                found = guarded.answer(image, seconds=limits.seconds_for(image["length"]))
                names = ("reason", "message") if isinstance(found, Failure) else FEATURES
                judged = {name: getattr(found, name) for name in names}
                yield {"path": image["path"], "image_id": image["image_id"], **judged}

    return map_partitions(images.select("path", "image_id", "length", "content"), features, JUDGED)


def to_label(landing: str) -> Column:
    """The first sub-folder below the landing folder; null for a file directly in it or outside of it."""
    below = F.when(F.col("path").startswith(f"{landing}/"), F.expr("path").substr(len(landing) + 2, 1 << 20))
    parts = F.split(below, "/")
    return F.when(F.size(parts) > 1, F.replace(parts[0], F.lit("%25"), F.lit("%")))  # as the folder is called


def label_numbers(new: list[str], numbered: dict[str, int]) -> dict[str, int]:
    """Every label's number: those that have one keep it, new ones get the next, in alphabetical order."""
    first = max(numbered.values(), default=-1) + 1
    unnumbered = sorted(set(new) - set(numbered))
    return numbered | {label: number for number, label in enumerate(unnumbered, first)}


def with_labels(images: DataFrame, featured: DataFrame, landing: str) -> DataFrame:
    """The images with label and label_index; `featured` tells the numbers that labels have already."""
    labelled = images.withColumn("label", to_label(landing))
    new = [row["label"] for row in labelled.select("label").distinct().dropna().collect()]
    known = featured.where("label IS NOT NULL").select("label", "label_index").distinct().collect()
    numbers = label_numbers(new, {row["label"]: row["label_index"] for row in known})
    if not numbers:
        return labelled.withColumn("label_index", F.lit(None).cast("int"))
    pairs = [F.lit(value) for pair in numbers.items() for value in pair]
    return labelled.withColumn("label_index", F.element_at(F.create_map(*pairs), F.col("label")))


def quarantine(delta_tables: DeltaTables, judged: DataFrame) -> None:
    """Record in the ledger what could not be decoded, where the file still is that image, unchanged."""
    unreadable = judged.where("reason IS NOT NULL").select("path", "image_id", "reason", "message")
    current = delta_tables.read(IMAGE_FILES).where(F.col("state") == CURRENT)
    current = current.select("path", "image_id", "length", "modification_time")
    rows = unreadable.join(current, on=["path", "image_id"], how="inner")
    record(delta_tables, rows.withColumn("state", F.lit(QUARANTINED)))


def featured(delta_tables: DeltaTables, image_folder: ImageFolder, images: DataFrame) -> DataFrame:
    """Rows of featured_images for those rows of raw_images that can be decoded; the ledger learns of the others."""
    judged = with_features(images, to_limits(image_folder)).cache()
    quarantine(delta_tables, judged)
    readable = F.broadcast(judged.where("reason IS NULL").drop("reason", "message"))
    labelled = with_labels(images, delta_tables.read(FEATURED_IMAGES), image_folder.path)
    return labelled.join(readable, on=["path", "image_id"], how="inner")


def follow_raw_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> Change:
    """Append what raw_images got since last time."""
    columns = RAW_IMAGES.columns.fieldNames()
    return delta_tables.follow(
        RAW_IMAGES, columns, FEATURED_IMAGES, by=lambda images: featured(delta_tables, image_folder, images)
    )


def take_in_again(delta_tables: DeltaTables, image_folder: ImageFolder, images: Mapping[str, str | None]) -> None:
    """Append the rows of raw_images, by path and image_id, that were followed before and could not be decoded then."""
    keys = delta_tables.spark.createDataFrame(list(images.items()), "path string, image_id string")

    def lacking() -> DataFrame:
        rows = delta_tables.read(RAW_IMAGES).join(F.broadcast(keys), on=["path", "image_id"], how="left_semi")
        there = delta_tables.read(FEATURED_IMAGES).select("path", "image_id").join(keys, on="path", how="left_semi")
        return rows.join(F.broadcast(there), on=["path", "image_id"], how="left_anti")

    if not images or lacking().select("path").isEmpty():
        return
    follow_raw_images(delta_tables, image_folder)  # what it has not come to yet comes by itself
    again = lacking()
    if not again.select("path").isEmpty():
        delta_tables.append(featured(delta_tables, image_folder, again), FEATURED_IMAGES)


@dg.asset(deps=["raw_images"], kinds={"pyspark", "deltalake", "pillow"}, pool="image_files")
def featured_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """Each image with what can be read off it: label, width, height, mode, format, perceptual hash."""
    change = follow_raw_images(delta_tables, image_folder)
    looks = {**sheet_of_new(delta_tables, FEATURED_IMAGES, change), **quarantine_look(delta_tables)}
    return delta_tables.materialized(FEATURED_IMAGES, change, **looks)
