"""Checks of the tables' files: codec, row groups, file sizes and statistics, from the log and Parquet footers."""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from image_assets.schemas import TABLES
from resources.delta.delta_log import STATISTICS_PROPERTY, TableFiles, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import ColumnChunk, column_chunks, row_groups
from resources.delta.queries import repeated_keys
from resources.delta.table import ROW_CHECK_MIN, SMALL_FILES, TABLE_ROW_GROUP_BYTES, Compaction, Table
from resources.delta.unchanged import table_check

DUPLICATE_KEYS_REMEDY = (
    "something other than the asset writes to the table: stop it, list the rows with `make audit`, and delete the "
    "duplicates with a Delta writer"
)
SAMPLED_FILES = 8  # the newest ones; reading all footers of a large table would take minutes
REWRITE_HINT = "existing files stay readable, and compaction rewrites them"


def keys_unique(table: Table) -> dg.AssetChecksDefinition:
    """The check that no two rows of the table have the same keys."""

    @table_check(
        asset=table.name,
        name="keys_unique",
        reads=[table],
        description=f"One row per {', '.join(table.keys)}. If it fails: {DUPLICATE_KEYS_REMEDY}.",
    )
    def check(delta_tables: DeltaTables) -> dg.AssetCheckResult:
        repeated = repeated_keys(delta_tables, table).count
        return dg.AssetCheckResult(
            passed=repeated == 0,
            metadata={"repeated_keys": repeated},
            description=f"{repeated:,} keys have several rows: {DUPLICATE_KEYS_REMEDY}" if repeated else None,
        )

    return check


@dataclass(frozen=True)
class LayoutProblem:
    """A problem with a table's files: found, expected, and the remedy."""

    message: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN


def column_problems(table: Table, chunks: set[ColumnChunk]) -> list[LayoutProblem]:
    """Wrong codecs, and dictionaries or statistics of image bytes."""
    codec = table.codec.upper()
    others = sorted({f"{chunk.column} in {chunk.codec}" for chunk in chunks if chunk.codec != codec})
    images = [chunk for chunk in chunks if chunk.column in table.binary_columns]
    costly = sorted({chunk.column for chunk in images if chunk.dictionary or chunk.statistics})
    problems = []
    if others:
        # Compressing image bytes again slows down every read; in a small table it only costs a little space.
        severity = dg.AssetCheckSeverity.ERROR if table.binary_columns else dg.AssetCheckSeverity.WARN
        problems.append(
            LayoutProblem(
                f"found {', '.join(others)}, expected {codec}: write only with DeltaTables; {REWRITE_HINT}", severity
            )
        )
    if costly:
        problems.append(
            LayoutProblem(
                f"found dictionaries or statistics of {', '.join(costly)}, expected none for image bytes: "
                f"write only with DeltaTables; {REWRITE_HINT}"
            )
        )
    return problems


def size_problems(groups: Sequence[tuple[int, int]], compaction: Compaction) -> list[LayoutProblem]:
    """Row groups that are too large, and too many small files."""
    large = [size for rows, size in groups if size > 2 * TABLE_ROW_GROUP_BYTES and rows > ROW_CHECK_MIN]
    problems = []
    # A large image makes its row group large, whoever writes it; another writer makes most of them large.
    if len(large) > 1 and 2 * len(large) > len(groups):
        problems.append(
            LayoutProblem(
                f"found {len(large)} row groups of up to {max(large):,} bytes, expected about "
                f"{TABLE_ROW_GROUP_BYTES:,}: "
                f"write only with DeltaTables; {REWRITE_HINT}"
            )
        )
    if compaction.pays:
        problems.append(
            LayoutProblem(
                f"found {compaction.small_files} small files among {compaction.files}, expected under {SMALL_FILES}: "
                f"launch the job optimize_tables, which joins {compaction.rewritten_files} of them "
                f"({compaction.rewritten_bytes:,} bytes)"
            )
        )
    return problems


def log_problems(table: Table, log: TableFiles) -> list[LayoutProblem]:
    """Missing statistics in the log, which readers need to skip files."""
    expected = ",".join(table.statistics_columns)
    if not log.files or log.statistics_columns == expected:
        return []
    found = log.statistics_columns or "any column"
    remedy = f"set the table property {STATISTICS_PROPERTY} to these columns"
    return [LayoutProblem(f"found statistics of {found} in the log, expected {expected}: {remedy}")]


def layout(table: Table) -> dg.AssetChecksDefinition:
    """The check that a table's files are written as its columns require."""

    @table_check(
        asset=table.name,
        name="layout",
        reads=[table],
        description=f"Columns are {table.codec}, row groups are not too large, and few files are small, according to "
        f"the log and the footers of the newest {SAMPLED_FILES} files. If it fails: launch `optimize_tables`, which "
        "joins small files; only the asset may write to the table.",
    )
    def check(delta_tables: DeltaTables) -> dg.AssetCheckResult:
        log = table_files(delta_tables.uri(table))
        newest = [file.url for file in log.files[:SAMPLED_FILES]]
        chunks, groups, compaction = column_chunks(newest), row_groups(newest), delta_tables.compaction(table)
        problems = column_problems(table, chunks) + size_problems(groups, compaction) + log_problems(table, log)
        errors = [problem for problem in problems if problem.severity is dg.AssetCheckSeverity.ERROR]
        return dg.AssetCheckResult(
            passed=not problems,
            severity=dg.AssetCheckSeverity.ERROR if errors else dg.AssetCheckSeverity.WARN,
            description="; ".join(problem.message for problem in problems) or None,
            metadata={
                "files": len(log.files),
                "small_files": compaction.small_files,
                "bytes": log.size_bytes,
                "footers_read": f"the newest {len(newest)}" if newest else "none",
                "codecs": ", ".join(sorted({chunk.codec for chunk in chunks})) or "none",
                "row_groups_read": len(groups),
                "largest_row_group_bytes": max((size for _, size in groups), default=0),
            },
        )

    return check


layout_checks = [layout(table) for table in TABLES]
