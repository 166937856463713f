"""Small files joined into larger ones, where it pays, and what compressing would save."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from image_assets.jobs.launchpad_examples import with_example
from image_assets.schemas import FEATURED_IMAGES, IMAGE_PREDICTIONS, RAW_IMAGES, REPLAYED_FILES, TABLES
from resources.delta.delta_log import TableFiles, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import open_parquet
from resources.delta.table import Table
from resources.delta.table_layout import MEBIBYTE, FileSizes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WITH_LEDGER = (REPLAYED_FILES, RAW_IMAGES, FEATURED_IMAGES)
# The pools of those assets that share one; another table's pool has its name.
POOLS = {table.name: "image_files" for table in WITH_LEDGER} | {IMAGE_PREDICTIONS.name: "gpu"}


class TablesConfig(Protocol):
    """A config that names tables."""

    tables: list[str]


def pool(table: Table) -> str:
    """The pool that the table's asset writes under."""
    return POOLS.get(table.name, table.name)


def for_every_op(verb: str, config: TablesConfig) -> dg.RunConfig:
    """The same config for the op of every table; a ValueError when it names a table that is none."""
    if unknown := set(config.tables) - {table.name for table in TABLES}:
        expected = ", ".join(table.name for table in TABLES)
        raise ValueError(f"there is no table {', '.join(sorted(unknown))}: expected some of {expected}")
    return dg.RunConfig(ops={f"{verb}_{table.name}": config for table in TABLES})


def records(rows: Sequence["DataclassInstance"], of: type["DataclassInstance"]) -> dg.TableMetadataValue:
    """The rows, all of one dataclass, as Dagster's UI shows a table."""
    names = [field.name for field in fields(of)]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(names, astuple(row), strict=True))) for row in rows],
        schema=dg.TableSchema(
            [dg.TableColumn(field.name, "string" if field.type is str else "int") for field in fields(of)]
        ),
    )


SAMPLED_FILES = 4
SAMPLE_BYTES = 8 * 1024 * 1024  # of each file
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Saving:
    """The sampled rows of one column: bytes as they are written now, and as zstd would write them."""

    column: str
    codec: str
    bytes_now: int
    bytes_zstd: int

    @property
    def share(self) -> float:
        """How much of the column zstd would save, 0 to 1; nothing where it would only add."""
        return max(0.0, 1 - self.bytes_zstd / self.bytes_now) if self.bytes_now else 0.0


def savings(files: Sequence[str]) -> list[Saving]:
    """What zstd would save of each column, told by the first rows of a few of the files, spread over all of them."""
    step = max(1, len(files) // SAMPLED_FILES)
    totals: dict[str, Saving] = {}
    for found in (saving for file in files[::step][:SAMPLED_FILES] for saving in savings_of_file(file)):
        before = totals.get(found.column, Saving(found.column, found.codec, 0, 0))
        codec = found.codec if before.codec == found.codec else "mixed"
        totals[found.column] = Saving(
            found.column, codec, before.bytes_now + found.bytes_now, before.bytes_zstd + found.bytes_zstd
        )
    return list(totals.values())


def savings_of_file(file: str) -> Iterator[Saving]:
    """What zstd would save of each column, told by the file's first rows."""
    with open_parquet(file) as parquet:
        if not parquet.num_row_groups:
            return
        group = parquet.metadata.row_group(0)
        codecs = {
            chunk.path_in_schema.split(".")[0]: chunk.compression
            for chunk in map(group.column, range(group.num_columns))
        }
        rows = max(1, SAMPLE_BYTES * group.num_rows // max(1, group.total_byte_size))
        sample = pa.Table.from_batches([next(parquet.iter_batches(rows, row_groups=[0]))])
    for column in sample.column_names:
        values = sample.select([column])
        now = written_bytes(values, "none" if codecs[column] == "UNCOMPRESSED" else codecs[column], None)
        yield Saving(column, codecs[column], now, written_bytes(values, "zstd", ZSTD_LEVEL))


def written_bytes(values: pa.Table, codec: str, level: int | None) -> int:
    """How many bytes one column takes in a Parquet file."""
    file = BytesIO()
    binary = pa.types.is_binary(values.schema.field(0).type)
    pq.write_table(values, file, compression=codec, compression_level=level, use_dictionary=not binary)
    group = pq.ParquetFile(file).metadata.row_group(0)
    return sum(group.column(place).total_compressed_size for place in range(group.num_columns))


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
        done=to_outcome(before, pays=compaction.pays, dry_run=config.dry_run),
        files_before=len(before.files),
        files_after=len(after.files),
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        bytes_rewritten=compaction.rewritten_bytes,
        zstd_would_save=savings_summary(found),
    )
    return row, found


def to_outcome(before: TableFiles, *, pays: bool, dry_run: bool) -> str:
    """One or two words for the report."""
    if not before.files:
        return "nothing there"
    if not pays:
        return "does not pay"
    return "would pay" if dry_run else "compacted"


def savings_summary(found: list[Saving]) -> str:
    """The columns of which zstd would save anything, and how much of them."""
    worth = [saving for saving in found if round(saving.share, 2) > 0]
    return ", ".join(f"{saving.share:.0%} of {saving.column} ({saving.codec.lower()})" for saving in worth) or "nothing"


def optimized_markdown(row: Optimized, found: list[Saving]) -> str:
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
        report = dg.MetadataValue.md(optimized_markdown(row, found))
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
