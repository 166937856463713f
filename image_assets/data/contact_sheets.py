"""A look at a table's new images, beside its materialization."""

from collections.abc import Iterable
from urllib.parse import unquote

import dagster as dg

from image_assets.images.charts import contact_sheet, picture_markdown
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import scaled_content
from image_assets.images.pixels import UnreadableImage, to_thumbnail
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import sample_rows
from resources.delta.table import Change, Table

SHEET_IMAGES = 40  # images on a sheet
THUMBNAIL_PIXELS = 224
THUMBNAIL_SECONDS = 10  # an image that takes longer is an empty place on the sheet
THUMBNAIL_MEMORY_BYTES = 1024**3


def new_images_metadata(delta_tables: DeltaTables, table: Table, change: Change) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the rows that the change brought; nothing for an empty table."""
    columns = [name for name in ("path", "label", "content") if name in table.columns.fieldNames()]
    rows = sample_rows(delta_tables.newest_files(table, change.before), columns, SHEET_IMAGES)
    if not rows:
        return {}
    pictures = thumbnails((row["path"], row["content"]) for row in rows)
    images = [(picture, to_caption(row["path"], row.get("label"))) for picture, row in zip(pictures, rows, strict=True)]
    title = f"{len(rows)} of {change.rows_added or change.after.rows:,} {'new ' if change.rows_added else ''}images"
    return {"images": dg.MetadataValue.md(picture_markdown(contact_sheet(images), title))}


def thumbnails(images: Iterable[tuple[str, bytes | None]]) -> list[bytes]:
    """A small JPEG for each path and content, read from the path where there is no content; empty if that fails.

    They are made in a guarded process: a sheet may show images that nobody decoded yet.
    """
    with GuardedProcess(thumbnail, memory_bytes=THUMBNAIL_MEMORY_BYTES) as guarded:
        pictures = [guarded.run(image, seconds=THUMBNAIL_SECONDS) for image in images]
    return [b"" if isinstance(picture, ItemFailure) else picture for picture in pictures]


def thumbnail(image: tuple[str, bytes | None]) -> bytes:
    """A small JPEG of one image, or nothing."""
    path, content = image
    content = scaled_content(path, 2 * THUMBNAIL_PIXELS) if content is None else content
    try:
        return to_thumbnail(bytes(content or b""), THUMBNAIL_PIXELS)
    except UnreadableImage:
        return b""


def to_caption(path: str, label: str | None) -> str:
    """What stands below a picture: its label, else its file's name."""
    return label or unquote(path.rpartition("/")[2])
