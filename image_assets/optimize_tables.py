"""Small files joined into larger ones, where it pays, and what compressing would save."""

from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from image_assets.launchpad_examples import with_example
from image_assets.schemas import TABLES
from image_assets.table_jobs import for_every_op, pool, records
from resources.compaction import MEBIBYTE, FileSizes
from resources.delta_log import TableFiles, table_files
from resources.delta_tables import DeltaTables
from resources.recompression import Saving, savings
from resources.tables import Table


class OptimizeConfig(dg.Config):
    """Which tables are looked at, and what is worth compacting."""

    tables: list[str] = Field(default=[table.name for table in TABLES], description="Names of the tables to look at.")
    dry_run: bool = Field(default=False, description="Say what would be done, and do nothing.")
    minimum_file_mb: int = Field(
        default=FileSizes.minimum_bytes // MEBIBYTE, gt=0, description="Smaller files are joined, where it pays."
    )
    maximum_file_mb: int = Field(
        default=FileSizes.maximum_bytes // MEBIBYTE, gt=0, description="Files are joined up to this size."
    )


@dataclass(frozen=True)
class Optimized:
    """What was done to a table: a row of the report."""

    table: str
    done: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    bytes_rewritten: int
    zstd_would_save: str


def optimize(delta_tables: DeltaTables, table: Table, config: OptimizeConfig) -> tuple[Optimized, list[Saving]]:
    """Compact the table if it pays; what was done, and what zstd would save of each column."""
    limits = FileSizes(config.minimum_file_mb * MEBIBYTE, config.maximum_file_mb * MEBIBYTE)
    uri = delta_tables.uri(table)
    before = table_files(uri)
    compaction = delta_tables.compaction(table, limits)
    if compaction.pays and not config.dry_run:
        delta_tables.compact(table, limits)
    after = table_files(uri)
    found = savings([file.url for file in after.files])
    row = Optimized(
        table=table.name,
        done=what_is_done(before, pays=compaction.pays, dry_run=config.dry_run),
        files_before=len(before.files),
        files_after=len(after.files),
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        bytes_rewritten=compaction.rewritten_bytes,
        zstd_would_save=in_words(found),
    )
    return row, found


def what_is_done(before: TableFiles, *, pays: bool, dry_run: bool) -> str:
    """One or two words for the report."""
    if not before.files:
        return "nothing there"
    if not pays:
        return "does not pay"
    return "would pay" if dry_run else "compacted"


def in_words(found: list[Saving]) -> str:
    """The columns of which zstd would save anything, and how much of them."""
    worth = [saving for saving in found if round(saving.share, 2) > 0]
    return ", ".join(f"{saving.share:.0%} of {saving.column} ({saving.codec.lower()})" for saving in worth) or "nothing"


def to_markdown(row: Optimized, found: list[Saving]) -> str:
    """The row in a sentence, and every column beside what zstd would save of it."""
    lines = [
        f"**{row.table}**: {row.done}; {row.files_before:,} files of {row.bytes_before:,} bytes before, "
        f"{row.files_after:,} of {row.bytes_after:,} after.",
        "",
        "| column | codec | zstd would save |",
        "|---|---|---|",
        *(f"| {saving.column} | {saving.codec.lower()} | {saving.share:.0%} |" for saving in found),
        "",
        "Told by a sample of the rows.",
    ]
    return "\n".join(lines)


def optimize_op(table: Table) -> dg.OpDefinition:
    """The op that optimizes one table, while nobody else writes to it."""

    @dg.op(
        name=f"optimize_{table.name}",
        description=f"Compact {table.name} where it pays.",
        pool=pool(table),
    )
    def op(context: dg.OpExecutionContext, config: OptimizeConfig, delta_tables: DeltaTables) -> list[Optimized]:
        if table.name not in config.tables:
            return []
        row, found = optimize(delta_tables, table, config)
        report = dg.MetadataValue.md(to_markdown(row, found))
        context.add_output_metadata({"optimized": records([row], Optimized), "report": report})
        return [row]

    return op


@dg.op
def report_optimized(context: dg.OpExecutionContext, optimized: list[list[Optimized]]) -> None:
    """What was done to every table, in one table."""
    context.add_output_metadata({"optimized": records([row for rows in optimized for row in rows], Optimized)})


@dg.config_mapping
def every_op(config: OptimizeConfig) -> dg.RunConfig:
    """The same config for the op of every table."""
    return for_every_op("optimize", config)


OPS = [optimize_op(table) for table in TABLES]


@dg.job(
    config=every_op,
    description=with_example(
        "optimize_tables",
        "Join small files of every table into larger ones, where it pays, and say what compressing would save.",
    ),
)
def optimize_tables() -> None:
    """Every table, then the report."""
    report_optimized([op() for op in OPS])
