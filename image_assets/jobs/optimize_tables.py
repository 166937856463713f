"""Compaction: joins the small files of each table into larger ones where that pays off."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Protocol

import dagster as dg
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, RAW_IMAGES, REPLAYED_FILES, TABLES
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import MEBIBYTE, FileSizes, Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The pools of assets that share one. Any other table's pool has the table's name.
SHARED_POOLS = {table.name: "image_files" for table in (REPLAYED_FILES, RAW_IMAGES, FEATURED_IMAGES)} | {
    IMAGE_PREDICTIONS.name: "gpu"
}


class TablesConfig(Protocol):
    """A config with names of tables."""

    tables: list[str]


def pool(table: Table) -> str:
    """The pool of the asset that writes the table."""
    return SHARED_POOLS.get(table.name, table.name)


def for_every_op(verb: str, config: TablesConfig) -> dg.RunConfig:
    """The same config for every table's op; a ValueError if it names an unknown table."""
    if unknown := set(config.tables) - {table.name for table in TABLES}:
        expected = ", ".join(table.name for table in TABLES)
        raise ValueError(f"Unknown tables: {', '.join(sorted(unknown))}. Expected some of: {expected}.")
    return dg.RunConfig(ops={f"{verb}_{table.name}": config for table in TABLES})


def records(rows: Sequence["DataclassInstance"], row_type: type["DataclassInstance"]) -> dg.TableMetadataValue:
    """The rows, all of one dataclass, as table metadata for Dagster's UI."""
    names = [field.name for field in fields(row_type)]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(names, astuple(row), strict=True))) for row in rows],
        schema=dg.TableSchema(
            [dg.TableColumn(field.name, "string" if field.type is str else "int") for field in fields(row_type)]
        ),
    )


class OptimizeConfig(dg.Config):
    """The tables to compact, and the file sizes to aim for."""

    tables: list[str] = Field(default=[table.name for table in TABLES], description="Names of the tables to compact.")
    dry_run: bool = Field(default=False, description="Only report what would be compacted.")
    minimum_file_mb: int = Field(
        default=FileSizes.minimum_bytes // MEBIBYTE, gt=0, description="Files smaller than this are joined."
    )
    maximum_file_mb: int = Field(
        default=FileSizes.maximum_bytes // MEBIBYTE, gt=0, description="Files are joined up to this size."
    )


@dataclass(frozen=True)
class Optimized:
    """The result for one table: a row of the report."""

    table: str
    done: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    bytes_rewritten: int


def optimize(delta_tables: DeltaTables, table: Table, config: OptimizeConfig) -> Optimized:
    """Compacts the table if it pays off; with `dry_run`, only reports whether it would."""
    limits = FileSizes(config.minimum_file_mb * MEBIBYTE, config.maximum_file_mb * MEBIBYTE)
    uri = delta_tables.uri(table)
    before = table_files(uri)
    compaction = delta_tables.compaction(table, limits)
    if not before.files:
        done = "empty"
    elif not compaction.pays:
        done = "nothing to compact"
    elif config.dry_run:
        done = "would be compacted"
    else:
        done = "compacted"
        delta_tables.compact(table, limits)
    after = table_files(uri)
    return Optimized(
        table=table.name,
        done=done,
        files_before=len(before.files),
        files_after=len(after.files),
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        bytes_rewritten=compaction.rewritten_bytes,
    )


def optimize_op(table: Table) -> dg.OpDefinition:
    """The op that compacts one table; it holds the table's pool, so nothing else writes to the table meanwhile."""

    @dg.op(
        name=f"optimize_{table.name}",
        description=f"Compact {table.name} if it has enough small files.",
        pool=pool(table),
    )
    def op(context: dg.OpExecutionContext, config: OptimizeConfig, delta_tables: DeltaTables) -> list[Optimized]:
        rows = [optimize(delta_tables, table, config)] if table.name in config.tables else []
        context.add_output_metadata({"optimized": records(rows, Optimized)})
        return rows

    return op


@dg.op
def report_optimized(context: dg.OpExecutionContext, optimized: list[list[Optimized]]) -> None:
    """The results of all tables in one table."""
    context.add_output_metadata({"optimized": records([row for rows in optimized for row in rows], Optimized)})


@dg.config_mapping
def every_op(config: OptimizeConfig) -> dg.RunConfig:
    """The same config for every table's op."""
    return for_every_op("optimize", config)


OPS = [optimize_op(table) for table in TABLES]


@dg.job(
    config=every_op,
    description=with_example("optimize_tables", "Join small files of each table into larger ones where it pays off."),
)
def optimize_tables() -> None:
    """Compacts every table, then reports."""
    report_optimized([op() for op in OPS])
