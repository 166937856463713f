"""The audit: are all tables consistent with the landing folder and with each other?"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest
from io import BufferedReader
from typing import cast

from deltalake import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from image_assets.data.folder_changes import folder_changes
from image_assets.data.image_files import IMAGE_KEYS, current_files, read_ledger
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    PREDICTION_ALERTS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.arrow_rows import Row, map_rows
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.files.file_system import open_file
from resources.files.image_folder import ImageFolder

STATES = (CURRENT, PENDING, QUARANTINED, MISSING)
MAX_EXAMPLES = 5
UPSTREAM = (
    (FEATURED_IMAGES, RAW_IMAGES),
    (GRAYSCALE_IMAGES, FEATURED_IMAGES),
    (IMAGE_SPLITS, FEATURED_IMAGES),
    (IMAGE_PREDICTIONS, FEATURED_IMAGES),
    (PREDICTION_ALERTS, IMAGE_PREDICTIONS),
)
MISMATCH = StructType([StructField("path", StringType())])


@dataclass(frozen=True)
class AuditResult:
    """The result of one rule: the number of violations, and a few of them."""

    rule: str
    broken: int
    examples: tuple[str, ...] = ()


def audit(delta_tables: DeltaTables, image_folder: ImageFolder) -> Iterator[AuditResult]:
    """Checks every rule, one after the other; reads every file and every row."""
    yield from check_states(delta_tables, image_folder)
    yield from check_keys(delta_tables)
    yield from check_contents(delta_tables)
    yield from check_completeness(delta_tables)
    yield from check_logs(delta_tables)


def to_result(rule: str, broken: DataFrame) -> AuditResult:
    """The result of a rule; `broken` holds the rows that violate it, named by their first column."""
    count = broken.count()
    shown = broken.limit(MAX_EXAMPLES).collect() if count else []
    return AuditResult(rule, count, tuple(str(row[0]) for row in shown))


def check_states(delta_tables: DeltaTables, image_folder: ImageFolder) -> Iterator[AuditResult]:
    """Each file has one valid state, and a run would find nothing to do."""
    ledger = delta_tables.dataframe(IMAGE_FILES)
    yield to_result("image_files: every state is valid", ledger.where(~F.col("state").isin(*STATES)).select("path"))
    reasons = ledger.where((F.col("state") == QUARANTINED) & F.col("reason").isNull())
    yield to_result("image_files: every quarantined file has a reason", reasons.select("path"))
    # A file that the next run decodes once more is recorded as it is.
    decided = {path: entry._replace(retry=False) for path, entry in read_ledger(delta_tables).items()}
    changes = folder_changes(image_folder, decided, part=None)
    found = [*(file.path for file in (*changes.to_read, *changes.irregular, *changes.unreadable)), *changes.missing]
    yield AuditResult(
        "image_files: every file is recorded as it is",
        len(found),
        tuple(found[:MAX_EXAMPLES]),
    )


def check_keys(delta_tables: DeltaTables) -> Iterator[AuditResult]:
    """No two rows of a table have the same keys."""
    for table in TABLES:
        repeated = delta_tables.dataframe(table).groupBy(*table.keys).count().where("count > 1")
        yield to_result(f"{table.name}: one row per {', '.join(table.keys)}", repeated)


def check_contents(delta_tables: DeltaTables) -> Iterator[AuditResult]:
    """Stored content and current files have the SHA-256 that is recorded as image_id."""
    other = (F.sha2("content", 256) != F.col("image_id")) | (F.length("content") != F.col("length"))
    yield to_result(
        "raw_images: image_id and length match the content",
        delta_tables.dataframe(RAW_IMAGES).where(F.col("content").isNotNull() & other).select("path"),
    )

    def differs(file: Row) -> Iterator[Row]:
        try:
            with open_file(file["path"]) as content:
                if file_digest(cast("BufferedReader", content), "sha256").hexdigest() == file["image_id"]:
                    return
        except OSError:
            pass  # deleted, or a link now: a mismatch as well
        yield {"path": file["path"]}

    current = current_files(delta_tables.dataframe(IMAGE_FILES))
    spread = current.repartition(delta_tables.spark.sparkContext.defaultParallelism)
    yield to_result("image_files: every current file has the recorded content", map_rows(spread, differs, MISMATCH))


def check_completeness(delta_tables: DeltaTables) -> Iterator[AuditResult]:
    """Every current file has a row in each image table, and every row has the row that it was made from."""
    current = current_files(delta_tables.dataframe(IMAGE_FILES))
    for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES):
        yield to_result(
            f"{table.name}: every current file has a row", rows_missing_in(current, delta_tables, table, IMAGE_KEYS)
        )
    raw = delta_tables.dataframe(RAW_IMAGES)
    yield to_result(
        "raw_images: every row has a file in image_files", rows_missing_in(raw, delta_tables, IMAGE_FILES, ["path"])
    )
    for table, upstream in UPSTREAM:
        orphans = rows_missing_in(delta_tables.dataframe(table), delta_tables, upstream, IMAGE_KEYS)
        yield to_result(f"{table.name}: every row has one in {upstream.name}", orphans)


def rows_missing_in(rows: DataFrame, delta_tables: DeltaTables, table: Table, keys: list[str]) -> DataFrame:
    """The keys of the rows that are missing in the table."""
    return rows.select(keys).join(delta_tables.dataframe(table).select(keys), on=keys, how="left_anti")


def check_logs(delta_tables: DeltaTables) -> Iterator[AuditResult]:
    """Delta versions are consecutive, and Spark and delta-rs read the same number of rows."""
    for table in TABLES:
        rows = delta_tables.dataframe(table).count()
        log = DeltaTable(delta_tables.uri(table))
        versions = sorted(commit["version"] for commit in log.history())
        gaps = [str(after) for before, after in zip(versions, versions[1:], strict=False) if after != before + 1]
        yield AuditResult(f"{table.name}: versions are consecutive", len(gaps), tuple(gaps[:MAX_EXAMPLES]))
        read = log.to_pyarrow_dataset().count_rows()
        yield AuditResult(f"{table.name}: Spark and delta-rs read the same number of rows", abs(rows - read))
