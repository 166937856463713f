"""The home's tables in memory: one row per file with its features, label, split and predictions, in DuckDB."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from image_assets.data.folder_layout import normalized
from image_assets.models.version_ids import MAX_CLOCK_SKEW
from image_assets.schemas import (
    FEATURED_IMAGES,
    GIVEN_LABELS,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    LABEL_CORRECTIONS,
)
from resources.delta.delta_log import BrokenTable, LostTable
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.mlflow.model_registry import (
    MODEL_NAME,
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    serving_version,
)

if TYPE_CHECKING:
    import duckdb

# What is read of each table: everything that filters and pages need, and never the images' bytes.
COLUMNS = {
    IMAGE_FILES: IMAGE_FILES.columns.fieldNames(),
    FEATURED_IMAGES: [name for name in FEATURED_IMAGES.columns.fieldNames() if name != "content"],
    IMAGE_SPLITS: ["path", "image_id", "duplicate_group", "split", "reason"],
    GIVEN_LABELS: ["path", "label", "attributes"],
    LABEL_CORRECTIONS: LABEL_CORRECTIONS.columns.fieldNames(),
    IMAGE_PREDICTIONS: [
        "path",
        "image_id",
        "label",
        "probability",
        "fault",
        "abstained",
        "most_probable_label",
        "distance_from_training",
        "unlike_training",
        "model_name",
        "model_version",
        "version_id",
        "framework",
        "predicted_at",
    ],
}
HASHES = {"perceptual_hash", "mirrored_hash"}
CHECK_SECONDS = 3  # between two checks for new Delta versions
MIN_TRAINING_IMAGES = 20  # fewer than these do not show what is usual, so there are no outliers
RARE_SHARE = 0.01  # formats and modes of a smaller share of the training images are rare

# One row per file in the ledger, with the features of its current content, or of its last content if it is gone.
FILES = """
CREATE TABLE files AS
SELECT row_number() OVER (ORDER BY ledger.path) AS n, ledger.*, featured.* EXCLUDE (path, image_id, length,
    modification_time), split.duplicate_group, split.split, split.reason AS split_reason,
    lower(nfc_normalize(ledger.path)) AS lower_path, width::BIGINT * height AS pixels
FROM ledger LEFT JOIN featured USING (path, image_id) LEFT JOIN split USING (path, image_id)
"""
# One row per file and version. Rows of another registry's version with the same number do not count. Rows of earlier
# releases, which have no version_id, count if the version was registered before them. `registered` lacks deleted ones.
PREDICTIONS = """
CREATE TABLE predictions AS
SELECT n, stored.label, stored.probability, stored.fault, coalesce(stored.abstained, false) AS abstained,
    stored.most_probable_label, stored.distance_from_training,
    coalesce(stored.unlike_training, false) AS unlike_training, stored.model_version AS version, stored.framework
FROM stored_predictions stored JOIN files USING (path, image_id)
    LEFT JOIN registered ON stored.model_version = registered.version
WHERE stored.model_name = $model_name AND (
    registered.version IS NULL OR stored.version_id = registered.version_id
    OR (coalesce(stored.version_id, '') = '' AND stored.predicted_at >= registered.created_at)
)
QUALIFY row_number() OVER (PARTITION BY n, stored.model_version ORDER BY stored.predicted_at DESC) = 1
"""
# Whether any two versions disagree on an image, and whether the newest versions of the frameworks do.
DISAGREEMENTS = """
CREATE TABLE disagreements AS
WITH newest AS (SELECT framework, max(version) AS version FROM predictions GROUP BY framework)
SELECT n, count(DISTINCT label) > 1 AS versions_disagree,
    count(DISTINCT label) FILTER (WHERE version IN (SELECT version FROM newest)) > 1 AS frameworks_disagree
FROM predictions GROUP BY n
"""
# Images outside the 0.5 to 99.5 % range of the current training images, or with a rare format or mode.
OUTLIERS = """
CREATE TABLE outliers AS
WITH measured AS (
    SELECT *, width / height AS aspect, length / pixels AS density FROM files WHERE width > 0
),
training AS (SELECT * FROM measured WHERE split = 'training' AND state = 'current'),
bounds AS (SELECT count(*) AS images, {bounds} FROM training)
SELECT * FROM (
    SELECT n, list_filter([{traits}], lambda trait: trait IS NOT NULL) AS traits
    FROM measured, bounds WHERE bounds.images >= $min_training_images
) WHERE len(traits) > 0
"""
# Each measure, with the traits of images below and above its bounds.
MEASURES = {
    "width": ("narrow", "wide"),
    "height": ("short", "tall"),
    "aspect": ("tall for its width", "wide for its height"),
    "density": ("few bytes per pixel", "many bytes per pixel"),
}
CATEGORIES = ("format", "mode")
# The newest correction of each image counts, whether or not featured_images has it yet. A withdrawn correction holds
# the folder's label, so a label from the label table takes precedence over it.
CORRECTED = """
CREATE OR REPLACE TABLE corrected AS
SELECT path, image_id, NOT withdrawn AS is_corrected,
    CASE WHEN withdrawn AND given.path IS NOT NULL THEN given.label ELSE corrections.label END AS corrected_label
FROM corrections LEFT JOIN given USING (path)
QUALIFY row_number() OVER (PARTITION BY path, image_id ORDER BY corrected_at DESC) = 1
"""
IMAGES = """
CREATE VIEW images AS
SELECT files.* EXCLUDE (label), coalesce(is_corrected, false) AS corrected,
    CASE WHEN is_corrected IS NULL THEN label ELSE corrected_label END AS label,
    versions_disagree, frameworks_disagree, traits, attributes
FROM files LEFT JOIN disagreements USING (n) LEFT JOIN outliers USING (n) LEFT JOIN corrected USING (path, image_id)
    LEFT JOIN (SELECT path, attributes FROM given) USING (path)
"""


@dataclass(frozen=True, eq=False)
class Index:
    """The tables at one moment, to be queried by several threads.

    Pages query the view `images` (one row per file, numbered by `n` in the order of paths) and the tables
    `predictions`, `featured` (also former contents) and `corrections`.
    """

    connection: "duckdb.DuckDBPyConnection"
    versions: Mapping[str, int | None]  # the Delta version of each table; None if there is no table yet
    models: Mapping[int, ModelVersion] = field(default_factory=dict)  # the registered versions by number
    merge_labels: bool = False  # as in ImageFolder
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """The rows that a query selects, as dictionaries by column."""
        with self.connection.cursor() as cursor:
            result = cursor.execute(query, values)
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def value(self, query: str, values: Sequence[Any] = ()) -> Any:  # whatever the query selects
        """The single value that a query selects."""
        return next(iter(self.rows(query, values)[0].values()))

    @property
    def serving(self) -> int | None:
        """The number of the serving version; None if there is none, or if the registry is ambiguous."""
        with suppress(UnclearServingVersion):
            if version := serving_version(list(self.models.values())):
                return version.version
        return None


class LiveIndex:
    """Provides the index without delay, and refreshes it in the background when tables or the registry change."""

    def __init__(self, delta_tables: DeltaTables, registry: ModelRegistry, *, merge_labels: bool = False) -> None:
        self._delta_tables = delta_tables
        self._registry = registry
        self._merge_labels = merge_labels
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._is_broken = False  # whether the last refresh met a table that cannot be read
        self._checked_at = 0.0

    def current(self) -> Index:
        """The index, a few seconds old at most; the first call waits until it has been read.

        Raises:
            LostTable, BrokenTable: A table cannot be read; the message says what to do. The next call tries again.
        """
        if self._index is None or self._is_broken:
            self.refresh()
        elif time.monotonic() - self._checked_at > CHECK_SECONDS:
            self._checked_at = time.monotonic()
            threading.Thread(target=self._refresh_later, name="index", daemon=True).start()
        assert self._index is not None
        return self._index

    def refresh(self) -> None:
        """Read what has changed in the tables and the registry; concurrent calls wait for each other."""
        with self._lock:
            try:
                self._index = self._newest()
                self._is_broken = False
            except (LostTable, BrokenTable):
                self._is_broken = True
                raise
            finally:
                self._checked_at = time.monotonic()

    def _refresh_later(self) -> None:
        with suppress(LostTable, BrokenTable):  # the next call raises it
            self.refresh()

    def _newest(self) -> Index:
        models, newest = self._models(), newest_versions(self._delta_tables)
        index = self._index
        if (
            index is None
            or [*index.models.values()] != models
            or without_corrections(index.versions) != without_corrections(newest)
        ):
            return read_index(self._delta_tables, models, self._registry.name, merge_labels=self._merge_labels)
        return index if index.versions == newest else with_corrections(index, self._delta_tables)

    def refresh_corrections(self) -> None:
        """Read the label corrections only, which takes milliseconds."""
        with self._lock:
            if self._index:
                self._index = with_corrections(self._index, self._delta_tables)

    def _models(self) -> Sequence[ModelVersion]:
        try:
            return self._registry.versions()
        except RegistryUnavailable:  # pages work without the models, they only lack some names
            return [*self._index.models.values()] if self._index else []


def newest_versions(delta_tables: DeltaTables) -> dict[str, int | None]:
    """The newest Delta version of each table in the index; None if there is no table yet."""
    return {table.name: delta_tables.newest_version(table) for table in COLUMNS}


def without_corrections(versions: Mapping[str, int | None]) -> dict[str, int | None]:
    """The Delta versions of all tables except label_corrections."""
    return {name: version for name, version in versions.items() if name != LABEL_CORRECTIONS.name}


def read_index(
    delta_tables: DeltaTables,
    models: Sequence[ModelVersion] = (),
    model_name: str = MODEL_NAME,
    *,
    merge_labels: bool = False,
) -> Index:
    """A new index of the tables' newest versions."""
    import duckdb

    versions = newest_versions(delta_tables)
    connection = duckdb.connect()
    for name, table in {"ledger": IMAGE_FILES, "featured": FEATURED_IMAGES, "split": IMAGE_SPLITS}.items():
        create_table(connection, name, read_columns(delta_tables, table))
    connection.execute(FILES)
    create_table(connection, "stored_predictions", read_columns(delta_tables, IMAGE_PREDICTIONS))
    create_table(connection, "registered", registered_versions(models))
    connection.execute(PREDICTIONS, {"model_name": model_name})
    connection.execute("DROP TABLE stored_predictions; DROP TABLE registered; DROP TABLE split; DROP TABLE ledger")
    connection.execute(DISAGREEMENTS)
    connection.execute(outliers_sql(), {"rare_share": RARE_SHARE, "min_training_images": MIN_TRAINING_IMAGES})
    load_corrections(connection, delta_tables, merge_labels=merge_labels)
    connection.execute(IMAGES)
    connection.execute("CREATE INDEX contents ON featured (image_id)")
    return Index(connection, versions, {model.version: model for model in models}, merge_labels)


def registered_versions(models: Sequence[ModelVersion]) -> pa.Table:
    """Number, identity and time of registration of the versions."""
    rows = [
        {
            "version": model.version,
            "version_id": model.version_id,
            "created_at": model.created_at and model.created_at - MAX_CLOCK_SKEW,
        }
        for model in models
    ]
    types = [("version", pa.int32()), ("version_id", pa.string()), ("created_at", pa.timestamp("us", "UTC"))]
    return pa.Table.from_pylist(rows, pa.schema(types))


def with_corrections(index: Index, delta_tables: DeltaTables) -> Index:
    """The same index with the newest label corrections."""
    version = delta_tables.newest_version(LABEL_CORRECTIONS)
    with index.connection.cursor() as connection:
        connection.begin()
        load_corrections(connection, delta_tables, merge_labels=index.merge_labels)
        connection.commit()
    return replace(index, versions={**index.versions, LABEL_CORRECTIONS.name: version}, read_at=datetime.now(UTC))


def load_corrections(
    connection: "duckdb.DuckDBPyConnection", delta_tables: DeltaTables, *, merge_labels: bool = False
) -> None:
    """Replace the label corrections of the index with the newest ones, merged as in featured_images."""
    for name, table in {"given": GIVEN_LABELS, "corrections": LABEL_CORRECTIONS}.items():
        rows = read_columns(delta_tables, table)
        create_table(connection, name, with_merged_labels(rows) if merge_labels else rows)
    connection.execute(CORRECTED)


def with_merged_labels(rows: pa.Table) -> pa.Table:
    """The rows with labels that do not differ in case, spaces or Unicode form only."""
    labels = [label and normalized(label) for label in rows["label"].to_pylist()]
    return rows.set_column(rows.column_names.index("label"), "label", pa.array(labels, pa.string()))


def outliers_sql() -> str:
    """The statement that creates the table `outliers`, with the traits that make each image one."""
    extremes = [
        f"CASE WHEN {name} < {name}_bounds[1] THEN '{low}' WHEN {name} > {name}_bounds[2] THEN '{high}' END"
        for name, (low, high) in MEASURES.items()
    ]
    common = "SELECT {0} FROM training GROUP BY {0} HAVING count(*) >= $rare_share * (SELECT images FROM bounds)"
    rare = [f"CASE WHEN {name} NOT IN ({common.format(name)}) THEN '{name} ' || {name} END" for name in CATEGORIES]
    bounds = [f"quantile_disc({name}, [0.005, 0.995]) AS {name}_bounds" for name in MEASURES]
    return OUTLIERS.format(bounds=", ".join(bounds), traits=", ".join([*extremes, *rare]))


def create_table(connection: "duckdb.DuckDBPyConnection", name: str, rows: pa.Table) -> None:
    """Copy rows into a table of the index; replaces a table of that name."""
    connection.register("arrow_rows", rows)
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM arrow_rows")
    connection.unregister("arrow_rows")


def read_columns(delta_tables: DeltaTables, table: Table) -> pa.Table:
    """A table's columns for the index; hashes become uint64, so that DuckDB can count their differing bits."""
    rows = delta_tables.read(table, COLUMNS[table])
    for name in HASHES.intersection(rows.column_names):
        numbers = pa.array([int(text, 16) if text else None for text in rows[name].to_pylist()], pa.uint64())
        rows = rows.set_column(rows.column_names.index(name), name, numbers)
    return rows


def to_hash_text(number: int | None) -> str | None:
    """A perceptual hash as 16 hexadecimal digits, the way the tables store it."""
    return None if number is None else f"{np.uint64(number):016x}"
