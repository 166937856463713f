"""What can be read off each image: label, size, mode, format, perceptual hashes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from image_assets.data.contact_sheets import sheet_of_new
from image_assets.data.folder_changes import to_limits
from image_assets.data.image_files import Decision, quarantine_look, read_known, record
from image_assets.data.inspection import CURRENT, QUARANTINED, decoded
from image_assets.data.labels import known_labels, label_numbers, relabel, said_labels, to_label
from image_assets.images.charts import SHOWN_BARS, stacked_bars, to_markdown
from image_assets.images.isolated_process import Failure, GuardedProcess
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_tables import DeltaTables
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.table import Change
from resources.delta.thin_tables import ThinTables
from resources.files.image_folder import ImageFolder

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


IMAGE = ["path", "image_id"]
FEATURES = ("width", "height", "mode", "format", "orientation", "perceptual_hash", "mirrored_hash", "decode_warning")


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


def featured(delta_tables: DeltaTables, image_folder: ImageFolder, new: NewRows) -> list[WrittenFile]:
    """Files of featured_images for those rows of raw_images that can be decoded; the ledger learns of the others."""
    limits, landing = to_limits(image_folder), image_folder.path
    said = said_labels(delta_tables.thin)
    keys = [(row["path"], row["image_id"]) for row in new.read(IMAGE).to_pylist()]
    labels = {key: said.of(key, to_label(key[0], landing)) for key in keys}
    numbers = label_numbers(filter(None, labels.values()), known_labels(delta_tables.thin))

    def with_features(images: Iterable[Row]) -> Iterator[Row | SetAside]:
        with GuardedProcess(decoded, memory_bytes=limits.memory_bytes) as guarded:
            for image in images:
                found = guarded.answer(image, seconds=limits.seconds_for(image["length"]))
                if isinstance(found, Failure):
                    why = {"reason": found.reason, "message": found.message}
                    yield SetAside({"path": image["path"], "image_id": image["image_id"], **why})
                else:
                    label = labels[image["path"], image["image_id"]]
                    features = {name: getattr(found, name) for name in FEATURES}
                    yield {**image, "label": label, "label_index": numbers[label] if label else None, **features}

    columns = RAW_IMAGES.columns.fieldNames()
    written = delta_tables.write_by_tasks(new, columns, FEATURED_IMAGES, by=with_features)
    quarantine(delta_tables.thin, written.aside)
    return written.files


def follow_raw_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> Change:
    """Append what raw_images got since last time."""
    return delta_tables.follow_by_tasks(
        RAW_IMAGES, FEATURED_IMAGES, by=lambda new: featured(delta_tables, image_folder, new)
    )


def take_in_again(delta_tables: DeltaTables, image_folder: ImageFolder, images: Mapping[str, str]) -> None:
    """Append the rows of raw_images, by path and image_id, that were followed before and could not be decoded then."""
    if not images:
        return
    follow_raw_images(delta_tables, image_folder)  # what it has not come to yet comes by itself
    lacking = delta_tables.thin.all_rows(RAW_IMAGES, FEATURED_IMAGES, images.items())
    files = featured(delta_tables, image_folder, lacking)
    delta_tables.thin.append_files(FEATURED_IMAGES, files)


@dg.asset(
    deps=["raw_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake", "pillow"},
    pool="image_files",
)
def featured_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """Each image with what can be read off it: label, width, height, mode, format, perceptual hash."""
    change = follow_raw_images(delta_tables, image_folder)
    relabelled = relabel(delta_tables, FEATURED_IMAGES)
    looks = {
        **sheet_of_new(delta_tables, FEATURED_IMAGES, change),
        **arrivals_look(delta_tables.thin, image_folder.path),
        **quarantine_look(delta_tables.thin),
    }
    return delta_tables.materialized(FEATURED_IMAGES, change, relabelled=relabelled, **looks)
