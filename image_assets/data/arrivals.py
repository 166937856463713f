"""How many images came on each day, by label: the newest days only, told by the ledger."""

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from image_assets.bar_pictures import SHOWN_BARS, stacked_bars
from image_assets.data.said_labels import said_labels
from image_assets.file_states import CURRENT
from image_assets.labels import to_label
from image_assets.pictures import to_markdown
from image_assets.schemas import IMAGE_FILES
from resources.thin_tables import ThinTables

COLUMNS = ["path", "image_id", "first_seen"]


def arrivals(thin_tables: ThinTables, landing: str, today: date) -> pd.DataFrame:
    """The current files that were found on each of the last days: a row for each day, a column for each label."""
    first = today - timedelta(days=SHOWN_BARS - 1)
    since = pa.scalar(datetime(first.year, first.month, first.day, tzinfo=UTC), pa.timestamp("us", "UTC"))
    recent = (pc.field("state") == CURRENT) & (pc.field("first_seen") >= since)
    files = thin_tables.read(IMAGE_FILES, COLUMNS, recent).to_pylist()
    said = said_labels(thin_tables)
    labels = [said.of((file["path"], file["image_id"]), to_label(file["path"], landing)) for file in files]
    found = pd.DataFrame(
        {"day": [file["first_seen"].date() for file in files], "label": [label or "no label" for label in labels]}
    )
    if found.empty:
        return found
    days = pd.date_range(found["day"].min(), found["day"].max()).to_series().dt.date
    return pd.crosstab(found["day"], found["label"]).reindex(days.tolist(), fill_value=0)


def arrivals_look(thin_tables: ThinTables, landing: str) -> dict[str, dg.MetadataValue]:
    """Metadata with a figure of the images that came lately; nothing where none did."""
    counts = arrivals(thin_tables, landing, datetime.now(UTC).date())
    if counts.empty:
        return {}
    counts.index = [f"{day:%d %b}" for day in counts.index]
    picture = stacked_bars(counts, "new images of each day (UTC), by label")
    title = f"{counts.to_numpy().sum():,} images came in the last {SHOWN_BARS} days"
    return {"arrivals": dg.MetadataValue.md(to_markdown(picture, title))}
