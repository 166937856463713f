"""The audit: are all tables consistent with the landing folder and with each other?"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from io import BufferedReader
from typing import cast

import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.folder_changes import folder_changes
from image_assets.data.image_files import IMAGE_KEYS, current_files, read_ledger
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SPLITS,
    PREDICTION_ALERTS,
    RAW_IMAGES,
    TABLES,
)
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import BrokenTable, LostTable, first_line
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.delta.local_tasks import counted
from resources.delta.log_repair import log_faults, missing_files
from resources.delta.table import Table
from resources.files.file_system import open_file
from resources.files.image_folder import ImageFolder
from resources.progress import ProgressLine

logger = logging.getLogger(__name__)
STATES = (CURRENT, PENDING, QUARANTINED, MISSING)
MAX_EXAMPLES = 5
MAX_ERROR_LENGTH = 500
UNREADABLE = (LostTable, BrokenTable, PySparkException, Py4JError, OSError)  # OSError: a file of rows is gone
UPSTREAM = (
    (FEATURED_IMAGES, RAW_IMAGES),
    (GRAYSCALE_IMAGES, FEATURED_IMAGES),
    (IMAGE_EMBEDDINGS, FEATURED_IMAGES),
    (IMAGE_SPLITS, FEATURED_IMAGES),
    (IMAGE_PREDICTIONS, FEATURED_IMAGES),
    (PREDICTION_ALERTS, IMAGE_PREDICTIONS),
)


@dataclass(frozen=True)
class AuditResult:
    """The result of one rule: the number of violations, and a few of them."""

    rule: str
    broken: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule, and a function that finds what breaks it: rows, named by their first column, or a list."""

    text: str
    broken: Callable[[], DataFrame | Sequence[str]]

    def result(self) -> AuditResult:
        """What breaks the rule; a table that is gone, or that cannot be read, breaks it as well."""
        try:
            found = self.broken()
            if isinstance(found, DataFrame):
                count = found.count()
                shown = found.limit(MAX_EXAMPLES).collect() if count else []
                return AuditResult(self.text, count, tuple(str(row[0]) for row in shown))
        except UNREADABLE as error:
            return AuditResult(self.text, 1, (f"{type(error).__name__}: {first_line(error)[:MAX_ERROR_LENGTH]}",))
        return AuditResult(self.text, len(found), tuple(found[:MAX_EXAMPLES]))


def audit(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    log: Callable[[str], object] = logger.info,
) -> Iterator[AuditResult]:
    """Checks every rule, one after the other; reads every file and every row.

    It changes no row, but creates tables that do not exist yet, and adds columns that older ones lack.

    `log` gets the progress of reading the files where no terminal shows it.
    """
    for rules in (
        check_tables(delta_tables),
        check_states(delta_tables, image_folder),
        check_keys(delta_tables),
        check_contents(delta_tables, image_folder.real_link_roots, log),
        check_completeness(delta_tables),
        check_logs(delta_tables),
    ):
        yield from (rule.result() for rule in rules)


def check_tables(delta_tables: DeltaTables) -> Iterator[Rule]:
    """Each table that was made is there, and so are the files of its log and those of its rows."""
    for table in TABLES:
        yield Rule(f"{table.name}: its log and its files are whole", partial(table_faults, delta_tables, table))


def table_faults(delta_tables: DeltaTables, table: Table) -> list[str]:
    """What is broken or missing in the table's folder; LostTable if the table is."""
    uri = delta_tables.uri(table)
    if faults := [*map(str, log_faults(uri))]:
        return faults
    delta_tables.newest_version(table)
    return missing_files(uri)


def check_states(delta_tables: DeltaTables, image_folder: ImageFolder) -> Iterator[Rule]:
    """Each file has one valid state, and a run would find nothing to do."""

    def ledger() -> DataFrame:
        return delta_tables.dataframe(IMAGE_FILES)

    def changed() -> list[str]:
        # A file that the next run decodes once more is recorded as it is.
        decided = {path: entry._replace(retry=False) for path, entry in read_ledger(delta_tables).items()}
        changes = folder_changes(image_folder, decided, part=None)
        found = (*changes.to_read, *changes.irregular, *changes.unreadable)
        return [*(file.path for file in found), *changes.missing, *changes.excluded]

    yield Rule(
        "image_files: every state is valid", lambda: ledger().where(~F.col("state").isin(*STATES)).select("path")
    )
    yield Rule(
        "image_files: every quarantined file has a reason",
        lambda: ledger().where((F.col("state") == QUARANTINED) & F.col("reason").isNull()).select("path"),
    )
    yield Rule("image_files: every file is recorded as it is", changed)


def check_keys(delta_tables: DeltaTables) -> Iterator[Rule]:
    """No two rows of a table have the same keys."""

    def repeated(table: Table) -> DataFrame | Sequence[str]:
        if not delta_tables.snapshot(table).rows:
            return []
        return delta_tables.dataframe(table).groupBy(*table.keys).count().where("count > 1")

    for table in TABLES:
        yield Rule(f"{table.name}: one row per {', '.join(table.keys)}", partial(repeated, table))


def check_contents(
    delta_tables: DeltaTables, link_roots: Sequence[str], log: Callable[[str], object]
) -> Iterator[Rule]:
    """Stored content and current files have the SHA-256 that is recorded as image_id."""

    def other_content() -> DataFrame:
        other = (F.sha2("content", 256) != F.col("image_id")) | (F.length("content") != F.col("length"))
        return delta_tables.dataframe(RAW_IMAGES).where(F.col("content").isNotNull() & other).select("path")

    def paths_that_differ(parts: Iterable[list[Row]]) -> Iterator[str]:
        for part in parts:
            for file in counted(part):
                if not has_recorded_content(file, link_roots):
                    yield file["path"]

    def differing() -> list[str]:
        columns, where = ["path", "image_id", "length"], pc.field("state") == CURRENT
        files = delta_tables.read(IMAGE_FILES, columns, where).to_pylist()
        executor = executor_for(delta_tables.pyspark, sum(file["length"] for file in files))
        tasks = executor.task_count(0)
        parts = list(filter(None, (files[first::tasks] for first in range(tasks))))
        if not parts:
            return []
        with ProgressLine("read", len(files), "files", log) as progress:
            return executor.run(paths_that_differ, parts, progress, rows=len(files))

    yield Rule("raw_images: image_id and length match the content", other_content)
    yield Rule("image_files: every current file has the recorded content", differing)


def has_recorded_content(file: Row, link_roots: Sequence[str]) -> bool:
    """Whether the file is there, and its SHA-256 is its image_id."""
    try:
        with open_file(file["path"], link_roots) as content:
            return file_digest(cast("BufferedReader", content), "sha256").hexdigest() == file["image_id"]
    except OSError:  # deleted, or a link now
        return False


def check_completeness(delta_tables: DeltaTables) -> Iterator[Rule]:
    """Every current file has a row in each image table, and every row has the row that it was made from."""

    def missing(table: Table) -> DataFrame:
        current = current_files(delta_tables.dataframe(IMAGE_FILES))
        return rows_missing_in(current, delta_tables, table, IMAGE_KEYS)

    def missing_embeddings() -> DataFrame | Sequence[str]:
        return missing(IMAGE_EMBEDDINGS) if delta_tables.snapshot(IMAGE_EMBEDDINGS).rows else []

    def orphans(table: Table, upstream: Table, keys: list[str]) -> DataFrame | Sequence[str]:
        if not delta_tables.snapshot(table).rows:
            return []
        return rows_missing_in(delta_tables.dataframe(table), delta_tables, upstream, keys)

    for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES):
        yield Rule(f"{table.name}: every current file has a row", partial(missing, table))
    yield Rule(f"{IMAGE_EMBEDDINGS.name}: if it has rows, every current file has one", missing_embeddings)
    yield Rule("raw_images: every row has a file in image_files", partial(orphans, RAW_IMAGES, IMAGE_FILES, ["path"]))
    for table, upstream in UPSTREAM:
        yield Rule(f"{table.name}: every row has one in {upstream.name}", partial(orphans, table, upstream, IMAGE_KEYS))


def rows_missing_in(rows: DataFrame, delta_tables: DeltaTables, table: Table, keys: list[str]) -> DataFrame:
    """The keys of the rows that are missing in the table."""
    return rows.select(keys).join(delta_tables.dataframe(table).select(keys), on=keys, how="left_anti")


def check_logs(delta_tables: DeltaTables) -> Iterator[Rule]:
    """Delta versions are consecutive, and Spark and delta-rs read the same number of rows."""

    def gaps(table: Table) -> list[str]:
        versions = sorted(commit["version"] for commit in delta_tables.history(table))
        return [str(after) for before, after in zip(versions, versions[1:], strict=False) if after != before + 1]

    def difference(table: Table) -> list[str]:
        counts = (delta_tables.dataframe(table).count(), delta_tables.read(table, table.keys).num_rows)
        return [] if counts[0] == counts[1] else [f"Spark reads {counts[0]:,} rows, delta-rs {counts[1]:,}"]

    for table in TABLES:
        yield Rule(f"{table.name}: versions are consecutive", partial(gaps, table))
        yield Rule(f"{table.name}: Spark and delta-rs read the same number of rows", partial(difference, table))
