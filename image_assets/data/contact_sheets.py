"""A look at a table's new images, beside its materialization."""

from collections.abc import Iterable
from urllib.parse import unquote

import dagster as dg

from image_assets.images.charts import contact_sheet, to_markdown
from image_assets.images.isolated_process import Failure, GuardedProcess
from image_assets.images.large_images import small_content
from image_assets.images.pixels import UnreadableImage, to_thumbnail
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import spread_rows
from resources.delta.table import Change, Table

SHOWN = 40  # images on a sheet
SIDE_PIXELS = 224
SECONDS = 10  # an image that takes longer is an empty place on the sheet
MEMORY_BYTES = 1024**3


def sheet_of_new(delta_tables: DeltaTables, table: Table, change: Change) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the rows that the change brought; nothing for an empty table."""
    columns = [name for name in ("path", "label", "content") if name in table.columns.fieldNames()]
    rows = spread_rows(delta_tables.thin.newest_files(table, change.before), columns, SHOWN)
    if not rows:
        return {}
    looks = thumbnails((row["path"], row["content"]) for row in rows)
    images = [(look, to_caption(row["path"], row.get("label"))) for look, row in zip(looks, rows, strict=True)]
    title = f"{len(rows)} of {change.rows_added or change.after.rows:,} {'new ' if change.rows_added else ''}images"
    return {"images": dg.MetadataValue.md(to_markdown(contact_sheet(images), title))}


def thumbnails(images: Iterable[tuple[str, bytes | None]]) -> list[bytes]:
    """A small JPEG for each path and content, read from the path where there is no content; empty if that fails.

    They are made in a guarded process: a sheet may show images that nobody decoded yet.
    """
    with GuardedProcess(thumbnail, memory_bytes=MEMORY_BYTES) as guarded:
        looks = [guarded.answer(image, seconds=SECONDS) for image in images]
    return [b"" if isinstance(look, Failure) else look for look in looks]


def thumbnail(image: tuple[str, bytes | None]) -> bytes:
    """A small JPEG of one image, or nothing."""
    path, content = image
    content = small_content(path, 2 * SIDE_PIXELS) if content is None else content
    try:
        return to_thumbnail(bytes(content or b""), SIDE_PIXELS)
    except UnreadableImage:
        return b""


def to_caption(path: str, label: str | None) -> str:
    """What stands below a picture: its label, else its file's name."""
    return label or unquote(path.rpartition("/")[2])
