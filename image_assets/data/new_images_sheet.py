"""The contact sheet of a table's new images, for the metadata of its materialization."""

import dagster as dg

from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, thumbnails, to_caption
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import sample_rows
from resources.delta.table import Change, Table

SHEET_IMAGES = 40


def new_images_metadata(delta_tables: DeltaTables, table: Table, change: Change) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the added rows, or of the newest ones; empty for an empty table."""
    columns = [name for name in ("path", "label", "content") if name in table.columns.fieldNames()]
    rows = sample_rows(delta_tables.newest_files(table, change.before), columns, SHEET_IMAGES)
    if not rows:
        return {}
    pictures = thumbnails((row["path"], row["content"]) for row in rows)
    images = [(picture, to_caption(row["path"], row.get("label"))) for picture, row in zip(pictures, rows, strict=True)]
    title = f"{len(rows)} of {change.rows_added or change.after.rows:,} {'new ' if change.rows_added else ''}images"
    return {"images": dg.MetadataValue.md(picture_markdown(contact_sheet(images), title))}
