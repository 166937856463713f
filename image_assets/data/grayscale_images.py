"""Grayscale copies of the images."""

from functools import partial

import dagster as dg

from image_assets.data.folder_layout import read_layout
from image_assets.data.ingestion import to_limits
from image_assets.data.labels import relabel
from image_assets.data.new_images_sheet import new_images_metadata
from image_assets.images.grayscale import to_gray_rows
from image_assets.images.large_images import Limits
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.table import Change
from resources.delta.unchanged import describe_once
from resources.delta.writing import write_by_tasks
from resources.files.image_folder import ImageFolder

# All that a worker needs, so that nothing is joined.
READ_COLUMNS = [*GRAYSCALE_IMAGES.columns.fieldNames(), "length"]
DEFAULT_LIMITS = Limits()


def follow_featured_images(delta_tables: DeltaTables, limits: Limits = DEFAULT_LIMITS) -> Change:
    """Appends grayscale copies of the rows that featured_images got since the last run."""
    to_gray = partial(to_gray_rows, limits=limits)

    def gray_files(new: NewRows) -> list[WrittenFile]:
        return write_by_tasks(delta_tables, new, READ_COLUMNS, GRAYSCALE_IMAGES, by=to_gray).files

    return follow(delta_tables, FEATURED_IMAGES, GRAYSCALE_IMAGES, by=gray_files)


@dg.asset(
    deps=["featured_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake", "pillow"},
    pool="grayscale_images",
)
def grayscale_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """Grayscale copies of the images as lossless PNG, with their labels."""
    change = follow_featured_images(delta_tables, to_limits(image_folder))
    relabeled = relabel(delta_tables, GRAYSCALE_IMAGES, read_layout(delta_tables, image_folder))
    sheet = describe_once(
        delta_tables,
        GRAYSCALE_IMAGES.name,
        lambda: new_images_metadata(delta_tables, GRAYSCALE_IMAGES, change),
        tables=[GRAYSCALE_IMAGES],
    )
    return delta_tables.materialized(GRAYSCALE_IMAGES, change, relabeled=relabeled, **sheet)
