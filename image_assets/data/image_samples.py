"""A sample of the images to explore: Spark's own pixels, and thumbnails to look at."""

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import dagster as dg
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.contact_sheets import to_caption
from image_assets.data.exploration import current_images, distribution_figure, duplicates
from image_assets.data.featured_images import to_label
from image_assets.data.judging import CURRENT
from image_assets.pictures import contact_sheet, to_markdown
from image_assets.pixels import UnreadableImage, to_thumbnail
from image_assets.schemas import IMAGE_FILES, IMAGE_SAMPLES
from resources.arrow_rows import Row, map_rows
from resources.delta_tables import DeltaTables
from resources.file_system import SCHEME, read_content, to_name, to_path
from resources.image_folder import ImageFolder
from resources.spark_session import cached

PER_LABEL = 8
LARGEST_BYTES = 2_000_000  # a photograph's pixels take about twenty times the bytes of its file
THUMBNAIL_PIXELS = 96
PIXELS = ("height", "width", "channels", "mode", "data")
# Spark's image source takes such names for patterns or addresses; such files keep their thumbnail only.
UNCLEAR = re.compile(r"[%*?\[\]{}\\:]")
THUMBNAILS = StructType([IMAGE_SAMPLES.columns[name] for name in ("path", "image_id", "label", "thumbnail")])


def sampled(files: DataFrame, landing: str) -> DataFrame:
    """A few current files of each label, the same ones as long as they are there."""
    by_chance = Window.partitionBy("label").orderBy("image_id", "path")
    return (
        files.where((F.col("state") == CURRENT) & (F.col("length") <= LARGEST_BYTES))
        .withColumn("label", to_label(landing))
        .withColumn("place", F.row_number().over(by_chance))
        .where(F.col("place") <= PER_LABEL)
        .select("path", "image_id", "label", "length")
    )


def with_thumbnails(files: DataFrame) -> DataFrame:
    """The files with a small JPEG of each."""

    def thumbnail(file: Row) -> Iterator[Row]:
        try:
            content = read_content(file["path"], length=file["length"])
            small = to_thumbnail(content, THUMBNAIL_PIXELS)
        except (OSError, UnreadableImage):  # gone, or quarantined a step later: an empty place on the sheet
            small = None
        yield {**{name: file[name] for name in ("path", "image_id", "label")}, "thumbnail": small}

    return map_rows(files, thumbnail, THUMBNAILS)


def spark_pixels(delta_tables: DeltaTables, paths: list[str]) -> DataFrame:
    """What Spark's `image` source reads of the files: height, width, channels, mode and pixels by path."""
    names = [f"file://{to_name(path).decode()}" for path in paths if not UNCLEAR.search(path.removeprefix(SCHEME))]
    if not names:
        return delta_tables.read(IMAGE_SAMPLES).select("path", *PIXELS).limit(0)
    images = delta_tables.spark.read.format("image").option("dropInvalid", True).load(names).select("image.*")
    to_our_path = F.udf(lambda origin: to_path(unquote(urlsplit(origin).path).encode()), "string")
    return images.withColumnRenamed("nChannels", "channels").select(to_our_path("origin").alias("path"), *PIXELS)


@dg.asset(
    deps=["raw_images", "image_files", "featured_images", "image_splits"],
    kinds={"pyspark", "deltalake"},
    pool="image_samples",
)
def image_samples(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """A few images of each label to explore: Spark's `image` source (height, width, mode, pixels) and thumbnails.

    Beside it stands what all current images are like: a figure of labels, formats and sizes, and duplicates.
    """
    before = delta_tables.snapshot(IMAGE_SAMPLES)
    files = sampled(delta_tables.read(IMAGE_FILES), image_folder.path)
    wanted = {(row["path"], row["image_id"]): row for row in files.collect()}
    there = delta_tables.thin.read(IMAGE_SAMPLES, ["path", "image_id"])
    if set(wanted) != set(zip(there["path"].to_pylist(), there["image_id"].to_pylist(), strict=True)):
        pixels = spark_pixels(delta_tables, [path for path, _ in wanted])
        sample = delta_tables.spark.createDataFrame(list(wanted.values()), files.schema)
        delta_tables.overwrite(with_thumbnails(sample).join(pixels, on="path", how="left"), IMAGE_SAMPLES)
    shown = delta_tables.read(IMAGE_SAMPLES).orderBy("label", "path").select("path", "label", "thumbnail").collect()
    tiles = [(bytes(row["thumbnail"] or b""), to_caption(row["path"], row["label"])) for row in shown]
    look = {"images": dg.MetadataValue.md(to_markdown(contact_sheet(tiles), "a sample of each label"))} if tiles else {}
    with cached(current_images(delta_tables)) as images:
        look |= distribution_figure(images) | duplicates(images)
    return delta_tables.materialized(IMAGE_SAMPLES, delta_tables.change_since(before, IMAGE_SAMPLES), **look)
