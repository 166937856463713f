"""The images in gray."""

from collections.abc import Iterator

import dagster as dg
from pyspark.sql import DataFrame

from image_assets.contact_sheets import sheet_of_new
from image_assets.pixels import to_grayscale
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES
from resources.arrow_rows import Row, map_rows
from resources.delta_tables import DeltaTables

TRIMMED = GRAYSCALE_IMAGES.columns.fieldNames()  # what a worker has to see: nothing is joined back


def with_gray_content(images: DataFrame) -> DataFrame:
    """The images with gray PNG content, the other columns carried along."""

    def in_gray(image: Row) -> Iterator[Row]:
        yield {**image, "content": to_grayscale(image["content"])}

    return map_rows(images.select(TRIMMED), in_gray, GRAYSCALE_IMAGES.columns)


@dg.asset(deps=["featured_images"], kinds={"pyspark", "deltalake", "pillow"}, pool="grayscale_images")
def grayscale_images(delta_tables: DeltaTables) -> dg.MaterializeResult:
    """The images in gray, as lossless PNG, with their labels."""
    change = delta_tables.follow(FEATURED_IMAGES, TRIMMED, GRAYSCALE_IMAGES, by=with_gray_content)
    return delta_tables.materialized(GRAYSCALE_IMAGES, change, **sheet_of_new(delta_tables, GRAYSCALE_IMAGES, change))
