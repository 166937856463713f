"""What can be read off each image: label, size, mode, format, perceptual hash."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from image_assets.contact_sheets import sheet_of_new
from image_assets.data.decoding import decoded
from image_assets.data.image_files import Decision, read_known, record
from image_assets.data.judging import CURRENT, QUARANTINED
from image_assets.data.limits import to_limits
from image_assets.data.quarantine_sheets import quarantine_look
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.schemas import FEATURED_IMAGES, RAW_IMAGES
from resources.arrow_rows import Row, SetAside
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder
from resources.parquet_files import WrittenFile
from resources.tables import Change
from resources.thin_tables import ThinTables

FEATURES = ("width", "height", "mode", "format", "orientation", "perceptual_hash", "decode_warning")


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


def with_labels(images: DataFrame, numbered: dict[str, int], landing: str) -> DataFrame:
    """The images with label and label_index; `numbered` tells the numbers that labels have already."""
    labelled = images.withColumn("label", to_label(landing))
    new = [row["label"] for row in labelled.select("label").distinct().dropna().collect()]
    numbers = label_numbers(new, numbered)
    if not numbers:
        return labelled.withColumn("label_index", F.lit(None).cast("int"))
    pairs = [F.lit(value) for pair in numbers.items() for value in pair]
    return labelled.withColumn("label_index", F.element_at(F.create_map(*pairs), F.col("label")))


def known_labels(thin_tables: ThinTables) -> dict[str, int]:
    """The labels of featured_images with their numbers."""
    columns = ["label", "label_index"]
    rows = thin_tables.read(FEATURED_IMAGES, columns, pc.field("label").is_valid()).group_by(columns).aggregate([])
    return dict(zip(rows["label"].to_pylist(), rows["label_index"].to_pylist(), strict=True))


def quarantine(thin_tables: ThinTables, unreadable: Sequence[Row]) -> None:
    """Record in the ledger what could not be decoded, where the file still is that image, unchanged."""
    known = read_known(thin_tables) if unreadable else {}
    record(
        thin_tables,
        [
            Decision(state=QUARANTINED, **row)
            for row in unreadable
            if (file := known.get(row["path"])) and (file.state, file.image_id) == (CURRENT, row["image_id"])
        ],
    )


def featured(delta_tables: DeltaTables, image_folder: ImageFolder, images: DataFrame) -> list[WrittenFile]:
    """Files of featured_images for those rows of raw_images that can be decoded; the ledger learns of the others."""
    limits = to_limits(image_folder)

    def with_features(partition: Iterable[Row]) -> Iterator[Row | SetAside]:
        with GuardedProcess(decoded, memory_bytes=limits.memory_bytes) as guarded:
            for image in partition:
                found = guarded.answer(image, seconds=limits.seconds_for(image["length"]))
                if isinstance(found, Failure):
                    said = {"reason": found.reason, "message": found.message}
                    yield SetAside({"path": image["path"], "image_id": image["image_id"], **said})
                else:
                    yield {**image, **{name: getattr(found, name) for name in FEATURES}}

    labelled = with_labels(images, known_labels(delta_tables.thin), image_folder.path)
    written = delta_tables.write_by_tasks(labelled, FEATURED_IMAGES, with_features)
    quarantine(delta_tables.thin, written.aside)
    return written.files


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
        delta_tables.thin.append_files(FEATURED_IMAGES, featured(delta_tables, image_folder, again))


@dg.asset(deps=["raw_images"], kinds={"pyspark", "deltalake", "pillow"}, pool="image_files")
def featured_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """Each image with what can be read off it: label, width, height, mode, format, perceptual hash."""
    change = follow_raw_images(delta_tables, image_folder)
    looks = {**sheet_of_new(delta_tables, FEATURED_IMAGES, change), **quarantine_look(delta_tables.thin)}
    return delta_tables.materialized(FEATURED_IMAGES, change, **looks)
