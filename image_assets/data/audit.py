"""The audit: are all tables consistent with the landing folder and with each other?"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from image_assets.data.folder_changes import folder_changes
from image_assets.data.image_files import IMAGE_KEYS, current_key_batches, read_ledger
from image_assets.data.inspection import (
    CURRENT,
    MISSING,
    PENDING,
    QUARANTINED,
    files_that_differ,
    rows_that_differ,
)
from image_assets.schemas import (
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_FILES,
    RAW_IMAGES,
    TABLES,
    UPSTREAM,
)
from resources.delta.delta_log import BrokenTable, LostTable, first_line, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for, runs_locally
from resources.delta.log_repair import damaged_files, log_faults
from resources.delta.new_rows import NewRows
from resources.delta.queries import Found, missing_keys, repeated_keys
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder
from resources.progress import ProgressLine

logger = logging.getLogger(__name__)
STATES = (CURRENT, PENDING, QUARANTINED, MISSING)
MAX_ERROR_LENGTH = 500
# A missing file of rows is an OSError, or an error of DuckDB if a query is reading it.
UNREADABLE = (
    LostTable,
    BrokenTable,
    DeltaError,
    PySparkException,
    Py4JError,
    OSError,
    pa.ArrowException,
    duckdb.InvalidInputException,
)


@dataclass(frozen=True)
class AuditResult:
    """The result of one rule: the number of violations, and a few of them."""

    rule: str
    broken: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule, and a function that finds what breaks it."""

    text: str
    broken: Callable[[], Found]

    def result(self) -> AuditResult:
        """What breaks the rule; a table that is gone, or that cannot be read, breaks it as well."""
        try:
            found = self.broken()
        except UNREADABLE as error:
            return AuditResult(self.text, 1, (f"{type(error).__name__}: {first_line(error)[:MAX_ERROR_LENGTH]}",))
        return AuditResult(self.text, found.count, found.examples)


def audit(
    delta_tables: DeltaTables,
    image_folder: ImageFolder,
    log: Callable[[str], object] = logger.info,
) -> Iterator[AuditResult]:
    """Checks every rule, one after the other; reads every file and every row.

    It changes no row, but adds columns that older tables lack.

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


def table_faults(delta_tables: DeltaTables, table: Table) -> Found:
    """What is broken or missing in the table's folder; LostTable if the table is."""
    uri = delta_tables.uri(table)
    if faults := [*map(str, log_faults(uri))]:
        return Found.of(faults)
    delta_tables.newest_version(table)
    return Found.of(damaged_files(uri))


def check_states(delta_tables: DeltaTables, image_folder: ImageFolder) -> Iterator[Rule]:
    """Each file has one valid state, and a run would find nothing to do."""

    def files_where(condition: pc.Expression) -> Found:
        return Found.of(delta_tables.read(IMAGE_FILES, ["path"], condition)["path"].to_pylist())

    def changed() -> Found:
        # A file that the next run decodes once more is recorded as it is.
        decided = {path: entry._replace(retry=False) for path, entry in read_ledger(delta_tables).items()}
        changes = folder_changes(image_folder, decided, part=None)
        found = (*changes.to_read, *changes.irregular, *changes.unreadable)
        return Found.of([*(file.path for file in found), *changes.missing, *changes.excluded])

    state = pc.field("state")
    yield Rule("image_files: every state is valid", partial(files_where, ~state.isin(STATES)))
    yield Rule(
        "image_files: every quarantined file has a reason",
        partial(files_where, (state == QUARANTINED) & pc.field("reason").is_null()),
    )
    yield Rule("image_files: every file is recorded as it is", changed)


def check_keys(delta_tables: DeltaTables) -> Iterator[Rule]:
    """No two rows of a table have the same keys."""
    for table in TABLES:
        yield Rule(f"{table.name}: one row per {', '.join(table.keys)}", partial(repeated_keys, delta_tables, table))


def check_contents(
    delta_tables: DeltaTables, link_roots: Sequence[str], log: Callable[[str], object]
) -> Iterator[Rule]:
    """Stored content and current files have the SHA-256 that is recorded as image_id."""

    def differing_rows() -> Found:
        stored = delta_tables.snapshot(RAW_IMAGES)
        files = table_files(delta_tables.uri(RAW_IMAGES), stored.version)
        rows = NewRows(tuple(file.url for file in files.files), stored.version)
        executor = executor_for(delta_tables.pyspark, files.size_bytes)
        tasks = executor.task_count(len(files.files))
        check = partial(rows_that_differ, rows, tasks)
        with ProgressLine("read", stored.rows, "rows", log) as progress:
            return Found.of(executor.run(check, range(tasks), progress, rows=stored.rows))

    def differing_files() -> Found:
        columns, where = ["path", "image_id", "length"], pc.field("state") == CURRENT
        files = delta_tables.read(IMAGE_FILES, columns, where).to_pylist()
        executor = executor_for(delta_tables.pyspark, sum(file["length"] for file in files))
        tasks = executor.task_count(0)
        parts = list(filter(None, (files[first::tasks] for first in range(tasks))))
        if not parts:
            return Found()
        check = partial(files_that_differ, link_roots)
        with ProgressLine("read", len(files), "files", log) as progress:
            return Found.of(executor.run(check, parts, progress, rows=len(files)))

    stored_content = partial(if_made, delta_tables, RAW_IMAGES, differing_rows)
    yield Rule("raw_images: image_id and length match the content", stored_content)
    yield Rule("image_files: every current file has the recorded content", differing_files)


def check_completeness(delta_tables: DeltaTables) -> Iterator[Rule]:
    """Every current file has a row in each image table, and every row has the row that it was made from."""

    def missing(table: Table) -> Found:
        return missing_keys(current_key_batches(delta_tables), delta_tables.batches(table, IMAGE_KEYS), IMAGE_KEYS)

    def missing_embeddings() -> Found:
        return missing(IMAGE_EMBEDDINGS) if delta_tables.snapshot(IMAGE_EMBEDDINGS).rows else Found()

    def orphans(table: Table, upstream: Table, keys: list[str]) -> Found:
        return missing_keys(delta_tables.batches(table, keys), delta_tables.batches(upstream, keys), keys)

    for table in (RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES):
        yield Rule(f"{table.name}: every current file has a row", partial(missing, table))
    embedded = partial(if_made, delta_tables, IMAGE_EMBEDDINGS, missing_embeddings)
    yield Rule(f"{IMAGE_EMBEDDINGS.name}: if it has rows, every current file has one", embedded)
    yield Rule("raw_images: every row has a file in image_files", partial(orphans, RAW_IMAGES, IMAGE_FILES, ["path"]))
    for table, upstream in UPSTREAM:
        yield Rule(f"{table.name}: every row has one in {upstream.name}", partial(orphans, table, upstream, IMAGE_KEYS))


def check_logs(delta_tables: DeltaTables) -> Iterator[Rule]:
    """Delta versions are consecutive; of a table that is large enough for Spark, it reads as many rows as delta-rs."""

    def gaps(table: Table) -> Found:
        versions = sorted(commit["version"] for commit in delta_tables.history(table))
        pairs = zip(versions, versions[1:], strict=False)
        return Found.of([str(after) for before, after in pairs if after != before + 1])

    def difference(table: Table) -> Found:
        counts = (delta_tables.dataframe(table).count(), delta_tables.read(table, table.keys).num_rows)
        return Found.of([] if counts[0] == counts[1] else [f"Spark reads {counts[0]:,} rows, delta-rs {counts[1]:,}"])

    for table in TABLES:
        consecutive, same_rows = (
            partial(if_made, delta_tables, table, partial(of, table)) for of in (gaps, difference)
        )
        yield Rule(f"{table.name}: versions are consecutive", consecutive)
        if not runs_locally(delta_tables.pyspark, size_bytes(delta_tables, table)):
            yield Rule(f"{table.name}: Spark and delta-rs read the same number of rows", same_rows)


def if_made(delta_tables: DeltaTables, table: Table, find: Callable[[], Found]) -> Found:
    """What is found in a table; nothing if it was never made. Looking at its log would create it."""
    return Found() if delta_tables.newest_version(table) is None else find()


def size_bytes(delta_tables: DeltaTables, table: Table) -> int:
    """The size of the table's files; 0 if it cannot be read, which breaks other rules."""
    try:
        return table_files(delta_tables.uri(table), delta_tables.newest_version(table)).size_bytes
    except UNREADABLE:
        return 0
