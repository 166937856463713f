"""The images in gray."""

from collections.abc import Iterable, Iterator

import dagster as dg
from pyspark.sql import DataFrame

from image_assets.contact_sheets import sheet_of_new
from image_assets.data.judging import Limits
from image_assets.guarded_process import Failure, GuardedProcess
from image_assets.path_only_images import small_content
from image_assets.pixels import to_grayscale
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES
from resources.arrow_rows import Row, map_partitions
from resources.delta_tables import DeltaTables

TRIMMED = [*GRAYSCALE_IMAGES.columns.fieldNames(), "length"]  # what a worker has to see: nothing is joined back
PATH_ONLY_PIXELS = 2048  # an image above the content limit is scaled down to fit in a square of this side


def with_gray_content(images: DataFrame) -> DataFrame:
    """The images with gray PNG content, the other columns carried along."""

    def in_gray(partition: Iterable[Row]) -> Iterator[Row]:
        limits = Limits()
        with GuardedProcess(small_gray, memory_bytes=limits.memory_bytes) as guarded:
            for image in partition:
                if image["content"] is not None:
                    yield {**image, "content": to_grayscale(image["content"])}
                else:
                    gray = guarded.answer(image["path"], seconds=limits.seconds_for(image["length"]))
                    yield {**image, "content": None if isinstance(gray, Failure) else gray}

    return map_partitions(images.select(TRIMMED), in_gray, GRAYSCALE_IMAGES.columns)


def small_gray(path: str) -> bytes | None:
    """Gray pixels of an image above the content limit; None where its file cannot be read any more."""
    content = small_content(path, PATH_ONLY_PIXELS)
    return None if content is None else to_grayscale(content)


@dg.asset(deps=["featured_images"], kinds={"pyspark", "deltalake", "pillow"}, pool="grayscale_images")
def grayscale_images(delta_tables: DeltaTables) -> dg.MaterializeResult:
    """The images in gray, as lossless PNG, with their labels."""
    change = delta_tables.follow(FEATURED_IMAGES, TRIMMED, GRAYSCALE_IMAGES, by=with_gray_content)
    return delta_tables.materialized(GRAYSCALE_IMAGES, change, **sheet_of_new(delta_tables, GRAYSCALE_IMAGES, change))
