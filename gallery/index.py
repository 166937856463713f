"""What the tables say of every file, in memory: their thin columns, in DuckDB."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from image_assets.schemas import (
    FEATURED_IMAGES,
    GIVEN_LABELS,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    LABEL_CORRECTIONS,
)
from resources.delta.table import Table
from resources.delta.thin_tables import ThinTables
from resources.mlflow.model_registry import (
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    serving_version,
)

READ = {
    IMAGE_FILES: IMAGE_FILES.columns.fieldNames(),
    FEATURED_IMAGES: [name for name in FEATURED_IMAGES.columns.fieldNames() if name != "content"],
    IMAGE_SPLITS: ["path", "image_id", "duplicate_group", "split", "reason"],
    GIVEN_LABELS: ["path", "label"],
    LABEL_CORRECTIONS: LABEL_CORRECTIONS.columns.fieldNames(),
    IMAGE_PREDICTIONS: ["path", "image_id", "label", "probability", "fault", "model_version", "framework"],
}
HASHES = {"perceptual_hash", "mirrored_hash"}
LEAST_TRAINED = 20  # images: of fewer nobody can say what is usual among them
LOOK_SECONDS = 3  # between two looks at the tables' logs
RARE = 0.01  # the share of the images trained on that counts as rare

# One row for each file of the ledger: what is known of the content that it has, or had last.
FILES = """
CREATE TABLE files AS
SELECT row_number() OVER (ORDER BY ledger.path) AS n, ledger.*, featured.* EXCLUDE (path, image_id, length,
    modification_time), split.duplicate_group, split.split, split.reason AS split_reason,
    lower(ledger.path) AS searched, width::BIGINT * height AS pixels
FROM ledger LEFT JOIN featured USING (path, image_id) LEFT JOIN split USING (path, image_id)
"""
ANSWERS = """
CREATE TABLE answers AS
SELECT n, said.label, said.probability, said.fault, said.model_version AS version, said.framework
FROM said JOIN files USING (path, image_id)
"""
# Whether versions answered differently: any two, or the newest ones of the frameworks.
APART = """
CREATE TABLE apart AS
WITH newest AS (SELECT framework, max(version) AS version FROM answers GROUP BY framework)
SELECT n, count(DISTINCT label) > 1 AS versions,
    count(DISTINCT label) FILTER (WHERE version IN (SELECT version FROM newest)) > 1 AS frameworks
FROM answers GROUP BY n
"""
# What few of the images that models are trained on are: the outer half percents, or a rare format or mode.
UNUSUAL = """
CREATE TABLE unusual AS
WITH known AS (SELECT *, width / height AS aspect, length / (width * height) AS density FROM files WHERE width > 0),
trained AS (SELECT * FROM known WHERE split = 'training' AND state = 'current'),
ends AS (SELECT count(*) AS images, {ends} FROM trained)
SELECT * FROM (
    SELECT n, list_filter([{traits}], lambda trait: trait IS NOT NULL) AS traits
    FROM known, ends WHERE ends.images >= $least
) WHERE len(traits) > 0
"""
TRAITS = {
    "width": ("narrow", "wide"),
    "height": ("low", "high"),
    "aspect": ("tall for its width", "wide for its height"),
    "density": ("few bytes for its size", "many bytes for its size"),
}
KINDS = ("format", "mode")
# The newest correction of each image counts, whether featured_images has it already or not. What one that takes
# corrections back says is the folder's label: where a label table gives one, that counts.
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
    versions AS versions_apart, frameworks AS frameworks_apart, traits
FROM files LEFT JOIN apart USING (n) LEFT JOIN unusual USING (n) LEFT JOIN corrected USING (path, image_id)
"""


@dataclass(frozen=True, eq=False)
class Index:
    """The tables at one moment; `versions` are their Delta versions, `models` the registered versions by number."""

    connection: duckdb.DuckDBPyConnection
    versions: Mapping[str, int | None]
    models: Mapping[int, ModelVersion] = field(default_factory=dict)
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """What DuckDB answers, also to several threads at once."""
        with self.connection.cursor() as cursor:
            found = cursor.execute(query, values)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def value(self, query: str, values: Sequence[Any] = ()) -> Any:  # whatever the query selects
        """The one value that a query selects."""
        return next(iter(self.rows(query, values)[0].values()))

    @property
    def serving(self) -> int | None:
        """The version that serves, where it can be told."""
        with suppress(UnclearServingVersion):
            if found := serving_version(list(self.models.values())):
                return found.version
        return None


def newest_versions(thin_tables: ThinTables) -> dict[str, int | None]:
    """The Delta version of each table that is read; None where there is no table yet."""
    return {table.name: thin_tables.newest_version(table) for table in READ}


def read_index(thin_tables: ThinTables, models: Sequence[ModelVersion] = ()) -> Index:
    """The tables as they are now."""
    versions = newest_versions(thin_tables)
    connection = duckdb.connect()
    for name, table in {"ledger": IMAGE_FILES, "featured": FEATURED_IMAGES, "split": IMAGE_SPLITS}.items():
        keep(connection, name, read(thin_tables, table))
    connection.execute(FILES)
    keep(connection, "said", thin_tables.read(IMAGE_PREDICTIONS, READ[IMAGE_PREDICTIONS]))
    connection.execute(ANSWERS)
    connection.execute("DROP TABLE said; DROP TABLE split; DROP TABLE ledger")
    connection.execute(APART)
    connection.execute(unusual(), {"rare": RARE, "least": LEAST_TRAINED})
    keep_corrections(connection, thin_tables)
    connection.execute(IMAGES)
    connection.execute("CREATE INDEX contents ON featured (image_id)")
    return Index(connection, versions, {model.version: model for model in models})


def with_corrections(index: Index, thin_tables: ThinTables) -> Index:
    """The same index with the label corrections as they are now."""
    version = thin_tables.newest_version(LABEL_CORRECTIONS)
    with index.connection.cursor() as connection:
        connection.begin()
        keep_corrections(connection, thin_tables)
        connection.commit()
    return replace(index, versions={**index.versions, LABEL_CORRECTIONS.name: version}, read_at=datetime.now(UTC))


def keep_corrections(connection: duckdb.DuckDBPyConnection, thin_tables: ThinTables) -> None:
    """Put the label corrections in place of those that the index has."""
    keep(connection, "given", thin_tables.read(GIVEN_LABELS, READ[GIVEN_LABELS]))
    keep(connection, "corrections", thin_tables.read(LABEL_CORRECTIONS, READ[LABEL_CORRECTIONS]))
    connection.execute(CORRECTED)


def unusual() -> str:
    """The statement that finds images which are unlike those that models are trained on."""
    outer = [
        f"CASE WHEN {name} < {name}_ends[1] THEN '{low}' WHEN {name} > {name}_ends[2] THEN '{high}' END"
        for name, (low, high) in TRAITS.items()
    ]
    usual = "SELECT {0} FROM trained GROUP BY {0} HAVING count(*) >= $rare * (SELECT images FROM ends)"
    rare = [f"CASE WHEN {name} NOT IN ({usual.format(name)}) THEN '{name} ' || {name} END" for name in KINDS]
    ends = [f"quantile_disc({name}, [0.005, 0.995]) AS {name}_ends" for name in TRAITS]
    return UNUSUAL.format(ends=", ".join(ends), traits=", ".join([*outer, *rare]))


def keep(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy the rows into a table of the index."""
    connection.register("coming", rows)
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM coming")
    connection.unregister("coming")


def read(thin_tables: ThinTables, table: Table) -> pa.Table:
    """A table's thin columns, its hashes as numbers."""
    rows = thin_tables.read(table, READ[table])
    for name in HASHES.intersection(rows.column_names):
        numbers = pa.array([int(text, 16) if text else None for text in rows[name].to_pylist()], pa.uint64())
        rows = rows.set_column(rows.column_names.index(name), name, numbers)
    return rows


def to_hash_text(number: int | None) -> str | None:
    """A perceptual hash as the tables have it."""
    return None if number is None else f"{np.uint64(number):016x}"


class LiveIndex:
    """Hands out an index at once, and looks behind it whether the tables or the registry have gone on."""

    def __init__(self, thin_tables: ThinTables, registry: ModelRegistry) -> None:
        self._thin_tables = thin_tables
        self._registry = registry
        self._reading = threading.Lock()
        self._index: Index | None = None
        self._looked_at = 0.0

    def now(self) -> Index:
        """The index; the very first time it has to be read."""
        if self._index is None:
            self.refresh()
        elif time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            threading.Thread(target=self.refresh, name="index", daemon=True).start()
        assert self._index is not None
        return self._index

    def refresh(self) -> None:
        """Read the tables and the registry again where they have gone on; one thread does, the others wait."""
        with self._reading:
            models, newest = self._models(), newest_versions(self._thin_tables)
            index = self._index
            if index is None or [*index.models.values()] != models or others(index.versions) != others(newest):
                self._index = read_index(self._thin_tables, models)
            elif index.versions != newest:
                self._index = with_corrections(index, self._thin_tables)
            self._looked_at = time.monotonic()

    def refresh_corrections(self) -> None:
        """Read what a person just corrected: it takes milliseconds."""
        with self._reading:
            if self._index:
                self._index = with_corrections(self._index, self._thin_tables)

    def _models(self) -> Sequence[ModelVersion]:
        try:
            return self._registry.versions()
        except RegistryUnavailable:  # pages do without names of probabilities until it answers
            return [*self._index.models.values()] if self._index else []


def others(versions: Mapping[str, int | None]) -> dict[str, int | None]:
    """The Delta versions of all tables but the corrections."""
    return {name: version for name, version in versions.items() if name != LABEL_CORRECTIONS.name}
