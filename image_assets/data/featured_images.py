"""The images with their label, size, color mode, format and perceptual hashes."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from image_assets.data.image_files import (
    IMAGE_KEYS,
    Decision,
    current_keys,
    merge_decisions,
    quarantine_metadata,
    read_ledger,
    read_seen_before,
    remove_seen_before,
)
from image_assets.data.ingestion import to_limits
from image_assets.data.inspection import CURRENT, QUARANTINED, decode_features
from image_assets.data.labels import extend_label_indexes, read_label_indexes, read_label_overrides, relabel, to_label
from image_assets.data.new_images_sheet import new_images_metadata
from image_assets.images.charts import SHOWN_BARS, picture_markdown, stacked_bars
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.arrow_rows import Row, SetAside, map_partitions
from resources.delta.delta_tables import FILE_NAME, DeltaTables
from resources.delta.following import BATCH_BYTES, follow, rows_with_keys
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.table import Change
from resources.delta.writing import write_by_tasks
from resources.files.image_folder import ImageFolder

ARRIVAL_COLUMNS = ["path", "image_id", "first_seen"]
FINGERPRINT = ("hashes", "thumbnail")
FEATURES = (
    *("width", "height", "mode", "format", "orientation", "perceptual_hash", "mirrored_hash", "decode_warning"),
    *FINGERPRINT,
)


def arrivals(delta_tables: DeltaTables, landing: str, today: date) -> pd.DataFrame:
    """How many current files arrived on each of the last days: one row per day, one column per label."""
    first = today - timedelta(days=SHOWN_BARS - 1)
    since = pa.scalar(datetime(first.year, first.month, first.day, tzinfo=UTC), pa.timestamp("us", "UTC"))
    recent = (pc.field("state") == CURRENT) & (pc.field("first_seen") >= since)
    files = delta_tables.read(IMAGE_FILES, ARRIVAL_COLUMNS, recent).to_pylist()
    overrides = read_label_overrides(delta_tables)
    labels = [overrides.of((file["path"], file["image_id"]), to_label(file["path"], landing)) for file in files]
    found = pd.DataFrame(
        {"day": [file["first_seen"].date() for file in files], "label": [label or "no label" for label in labels]}
    )
    if found.empty:
        return found
    days = pd.date_range(found["day"].min(), found["day"].max()).to_series().dt.date
    return pd.crosstab(found["day"], found["label"]).reindex(days.tolist(), fill_value=0)


def arrivals_metadata(delta_tables: DeltaTables, landing: str) -> dict[str, dg.MetadataValue]:
    """Metadata with a chart of the images that arrived lately; empty if there are none."""
    counts = arrivals(delta_tables, landing, datetime.now(UTC).date())
    if counts.empty:
        return {}
    counts.index = [f"{day:%d %b}" for day in counts.index]
    picture = stacked_bars(counts, "new images per day (UTC), by label")
    title = f"{counts.to_numpy().sum():,} new images in the last {SHOWN_BARS} days"
    return {"arrivals": dg.MetadataValue.md(picture_markdown(picture, title))}


def quarantine(delta_tables: DeltaTables, unreadable: Sequence[Row]) -> None:
    """Quarantines the images that could not be decoded, unless their files have changed since."""
    ledger = read_ledger(delta_tables) if unreadable else {}
    merge_decisions(
        delta_tables,
        [
            Decision(state=QUARANTINED, **row)
            for row in unreadable
            if (file := ledger.get(row["path"])) and (file.state, file.image_id) == (CURRENT, row["image_id"])
        ],
    )


def write_featured(delta_tables: DeltaTables, image_folder: ImageFolder, new: NewRows) -> list[WrittenFile]:
    """Writes featured_images files for the rows that can be decoded, and quarantines the others."""
    limits, landing = to_limits(image_folder), image_folder.path
    overrides = read_label_overrides(delta_tables)
    keys = [(row["path"], row["image_id"]) for row in new.read(IMAGE_KEYS).to_pylist()]
    labels = {key: overrides.of(key, to_label(key[0], landing)) for key in keys}
    numbers = extend_label_indexes(filter(None, labels.values()), read_label_indexes(delta_tables))

    def with_features(images: Iterable[Row]) -> Iterator[Row | SetAside]:
        with GuardedProcess(decode_features, memory_bytes=limits.memory_bytes) as guarded:
            for image in images:
                found = guarded.run(image, cpu_seconds=limits.seconds_for(image["length"]))
                if isinstance(found, ItemFailure):
                    why = {"reason": found.reason, "message": found.message}
                    yield SetAside({"path": image["path"], "image_id": image["image_id"], **why})
                else:
                    label = labels[image["path"], image["image_id"]]
                    features = {name: getattr(found, name) for name in FEATURES}
                    yield {**image, "label": label, "label_index": numbers[label] if label else None, **features}

    columns = RAW_IMAGES.columns.fieldNames()
    written = write_by_tasks(delta_tables, new, columns, FEATURED_IMAGES, by=with_features)
    quarantine(delta_tables, written.aside)
    return written.files


def append_recovered(delta_tables: DeltaTables, image_folder: ImageFolder) -> None:
    """Append images that were followed before and could not be decoded then; the ledger marks the candidates.

    The marks are removed last, so that a run that was killed in between is repeated by the next one.
    """
    marked = read_seen_before(delta_tables)
    if not marked:
        return
    there = delta_tables.read_keys(FEATURED_IMAGES, pc.field("path").isin([path for path, _ in marked]))
    if not there.issuperset(marked):
        lacking = rows_with_keys(delta_tables, RAW_IMAGES, FEATURED_IMAGES, marked)
        delta_tables.append_files(FEATURED_IMAGES, write_featured(delta_tables, image_folder, lacking))
    remove_seen_before(delta_tables, marked)


def add_fingerprints(delta_tables: DeltaTables, image_folder: ImageFolder, batch_bytes: int = BATCH_BYTES) -> int:
    """Adds the fingerprints that rows of earlier releases lack; returns for how many images.

    Each commit rewrites the files with at most `batch_bytes` of images: a run that is killed continues there.
    """
    lacking = delta_tables.read(FEATURED_IMAGES, [*IMAGE_KEYS, "length", FILE_NAME], pc.field("hashes").is_null())
    rows = lacking.to_pandas().merge(current_keys(delta_tables), on=IMAGE_KEYS).sort_values([FILE_NAME, "path"])
    if rows.empty:
        return 0
    limits = to_limits(image_folder)

    def with_fingerprint(images: Iterable[Row]) -> Iterator[Row]:
        with GuardedProcess(decode_features, memory_bytes=limits.memory_bytes) as guarded:
            for image in images:
                found = guarded.run(image, cpu_seconds=limits.seconds_for(image["length"]))
                if not isinstance(found, ItemFailure):  # a large image's file may be gone
                    keys = {name: image[name] for name in IMAGE_KEYS}
                    yield keys | {name: getattr(found, name) for name in FINGERPRINT}

    schema = StructType([FEATURED_IMAGES.columns[name] for name in (*IMAGE_KEYS, *FINGERPRINT)])
    with delta_tables.progress_line("added fingerprints", len(rows), "images") as progress:
        for _, batch in rows.groupby(rows["length"].cumsum() // batch_bytes):
            keys = delta_tables.spark.createDataFrame(batch[IMAGE_KEYS])
            images = delta_tables.dataframe(FEATURED_IMAGES).select(*IMAGE_KEYS, "length", "content")
            images = images.join(F.broadcast(keys), on=IMAGE_KEYS, how="left_semi")
            made = map_partitions(images, with_fingerprint, schema).localCheckpoint()  # merging reads it twice
            delta_tables.update(made, FEATURED_IMAGES, FINGERPRINT)
            progress.update(len(batch))
    return len(rows)


def follow_raw_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> Change:
    """Append the rows that raw_images got since the last run, and earlier ones that can be decoded by now."""
    change = follow(
        delta_tables, RAW_IMAGES, FEATURED_IMAGES, by=lambda new: write_featured(delta_tables, image_folder, new)
    )
    append_recovered(delta_tables, image_folder)  # after following: rows still to come would be appended twice
    return delta_tables.change_since(change.before, FEATURED_IMAGES)


@dg.asset(
    deps=["raw_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake", "pillow"},
    pool="image_files",
)
def featured_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """The images with their label, width, height, color mode, format and perceptual hash."""
    change = follow_raw_images(delta_tables, image_folder)
    add_fingerprints(delta_tables, image_folder)
    relabelled = relabel(delta_tables, FEATURED_IMAGES)
    metadata = {
        **new_images_metadata(delta_tables, FEATURED_IMAGES, change),
        **arrivals_metadata(delta_tables, image_folder.path),
        **quarantine_metadata(delta_tables),
    }
    return delta_tables.materialized(FEATURED_IMAGES, change, relabelled=relabelled, **metadata)
