"""A look at a table's images, beside its materialization."""

from urllib.parse import unquote

import dagster as dg

from image_assets.pictures import contact_sheet, to_markdown
from resources.delta_tables import DeltaTables
from resources.file_system import read_content
from resources.tables import Change, Table

SHOWN = 40  # images on a sheet


def sheet_of_new(delta_tables: DeltaTables, table: Table, change: Change) -> dict[str, dg.MetadataValue]:
    """Metadata with a contact sheet of the rows that the change brought; nothing for an empty table."""
    columns = [name for name in ("path", "label", "content") if name in table.columns.fieldNames()]
    rows = delta_tables.newest(table, change).select(columns).limit(SHOWN).collect()
    if not rows:
        return {}
    images = [(bytes(row["content"]), to_caption(row["path"], row.asDict().get("label"))) for row in rows]
    title = f"{len(rows)} of {change.rows_added or change.after.rows:,} {'new ' if change.rows_added else ''}images"
    return {"images": dg.MetadataValue.md(to_markdown(contact_sheet(images), title))}


def to_caption(path: str, label: str | None) -> str:
    """What stands below a picture: its label, else its file's name."""
    return label or unquote(path.rpartition("/")[2])


def content_or_nothing(path: str, length: int) -> bytes:
    """A file's bytes; none when it is gone or another one than listed: an empty place on the sheet."""
    try:
        return read_content(path, length=length)
    except OSError:
        return b""
