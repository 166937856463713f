"""The images with their label, size, format, what their camera recorded, and perceptual hashes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from functools import partial

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from image_assets.data.backfill import backfill
from image_assets.data.folder_layout import FolderLayout, read_layout
from image_assets.data.image_files import (
    IMAGE_KEYS,
    Decision,
    merge_decisions,
    quarantine_metadata,
    read_ledger,
    read_seen_before,
    remove_seen_before,
)
from image_assets.data.ingestion import to_limits
from image_assets.data.inspection import CURRENT, QUARANTINED, decode_features
from image_assets.data.labels import extend_label_indexes, read_label_indexes, read_labels, relabel
from image_assets.data.new_images_sheet import new_images_metadata
from image_assets.images.charts import SHOWN_BARS, picture_markdown, stacked_bars
from image_assets.images.features import Features
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.schemas import (
    FEATURED_IMAGES,
    GIVEN_LABELS,
    IMAGE_FILES,
    LABEL_CORRECTIONS,
    PREDICTED_FIRST,
    RAW_IMAGES,
)
from resources.delta.arrow_rows import Row, SetAside
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow, rows_with_keys
from resources.delta.new_rows import NewRows
from resources.delta.parquet_files import WrittenFile
from resources.delta.table import Change
from resources.delta.unchanged import describe_once
from resources.delta.writing import write_by_tasks
from resources.files.image_folder import ImageFolder

ARRIVAL_COLUMNS = ["path", "image_id", "first_seen"]
FEATURES = tuple(feature.name for feature in fields(Features))


def arrivals(delta_tables: DeltaTables, layout: FolderLayout, today: date) -> pd.DataFrame:
    """How many current files arrived on each of the last days: one row per day, one column per label."""
    first = today - timedelta(days=SHOWN_BARS - 1)
    since = pa.scalar(datetime(first.year, first.month, first.day, tzinfo=UTC), pa.timestamp("us", "UTC"))
    recent = (pc.field("state") == CURRENT) & (pc.field("first_seen") >= since)
    files = delta_tables.read(IMAGE_FILES, ARRIVAL_COLUMNS, recent).to_pylist()
    current = read_labels(delta_tables, layout)
    labels = [current.of((file["path"], file["image_id"])) for file in files]
    found = pd.DataFrame(
        {"day": [file["first_seen"].date() for file in files], "label": [label or "no label" for label in labels]}
    )
    if found.empty:
        return found
    days = pd.date_range(found["day"].min(), found["day"].max()).to_series().dt.date
    return pd.crosstab(found["day"], found["label"]).reindex(days.tolist(), fill_value=0)


def arrivals_metadata(delta_tables: DeltaTables, layout: FolderLayout) -> dict[str, dg.MetadataValue]:
    """Metadata with a chart of the images that arrived lately; empty if there are none."""
    counts = arrivals(delta_tables, layout, datetime.now(UTC).date())
    if counts.empty:
        return {}
    counts.index = [f"{day:%d %b}" for day in counts.index]
    picture = stacked_bars(counts, "new images per day (UTC), by label")
    title = f"{counts.to_numpy().sum():,} new images in the last {SHOWN_BARS} days"
    return {"arrivals": dg.MetadataValue.md(picture_markdown(picture, title))}


def quarantine(delta_tables: DeltaTables, unreadable: Sequence[Row]) -> None:
    """Quarantines the images that could not be decoded, unless their files have changed since."""
    if not unreadable:
        return
    ledger = read_ledger(delta_tables, pc.field("path").isin([row["path"] for row in unreadable]))
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
    limits = to_limits(image_folder)
    current = read_labels(delta_tables, read_layout(delta_tables, image_folder))
    keys = [(row["path"], row["image_id"]) for row in new.read(IMAGE_KEYS).to_pylist()]
    labels = {key: current.of(key) for key in keys}
    numbers = extend_label_indexes(filter(None, labels.values()), read_label_indexes(delta_tables))

    decode = partial(decode_features, reading=limits.reading)

    def with_features(images: Iterable[Row]) -> Iterator[Row | SetAside]:
        with GuardedProcess(decode, memory_bytes=limits.memory_bytes) as guarded:
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


def follow_raw_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> Change:
    """Append the rows that raw_images got since the last run, and earlier ones that can now be decoded."""
    change = follow(
        delta_tables, RAW_IMAGES, FEATURED_IMAGES, by=lambda new: write_featured(delta_tables, image_folder, new)
    )
    append_recovered(delta_tables, image_folder)  # after following: rows still to come would be appended twice
    return delta_tables.change_since(change.before, FEATURED_IMAGES)


@dg.asset(
    deps=["raw_images", "given_labels", "label_corrections"],
    kinds={"pyspark", "deltalake", "pillow"},
    pool="image_files",
    op_tags=PREDICTED_FIRST,
)
def featured_images(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.MaterializeResult:
    """The images with their label, size, format, pages, capture time, place, camera and perceptual hash."""
    change = follow_raw_images(delta_tables, image_folder)
    backfilled = backfill(delta_tables, image_folder)
    layout = read_layout(delta_tables, image_folder)
    relabeled = relabel(delta_tables, FEATURED_IMAGES, layout)
    described = describe_once(
        delta_tables,
        FEATURED_IMAGES.name,
        lambda: {
            **new_images_metadata(delta_tables, FEATURED_IMAGES, change),
            **arrivals_metadata(delta_tables, layout),
            **quarantine_metadata(delta_tables, image_folder.real_link_roots),
        },
        tables=[FEATURED_IMAGES, IMAGE_FILES, GIVEN_LABELS, LABEL_CORRECTIONS],
        values=[str(layout)],
    )
    return delta_tables.materialized(FEATURED_IMAGES, change, relabeled=relabeled, backfilled=backfilled, **described)
