"""A table's definition, its state before and after a materialization, and the layout of its Parquet files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import dagster as dg
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import ArrayType, BinaryType, MapType, StructType

from resources.delta.parquet_files import FileLayout
from resources.delta.row_groups import MEBIBYTE

FILL = "fill"  # in a column's metadata: its value in rows that were written without it
SMALL_FILES = 32  # fewer are not compacted
GROWTH = 4  # the least ratio of a compacted file to the largest file that goes into it
TABLE_ROW_GROUP_BYTES = 32 * 1024 * 1024
ROW_CHECK_MIN, ROW_CHECK_MAX = 4, 32


@dataclass(frozen=True)
class Table:
    """A table's name, the columns that identify a row, all columns in order, and the tables it is made from."""

    name: str
    keys: tuple[str, ...]
    columns: StructType
    made_from: tuple["Table", ...] = ()

    @property
    def fill_values(self) -> dict[str, str]:
        """What existing rows get in columns that are added to their table later; other new columns are null."""
        return {field.name: field.metadata[FILL] for field in self.columns if FILL in (field.metadata or {})}

    @property
    def statistics_columns(self) -> list[str]:
        """The columns with statistics in the log: all but binary and nested ones."""
        return [
            field.name
            for field in self.columns
            if not isinstance(field.dataType, BinaryType | ArrayType | MapType | StructType)
        ]

    @property
    def binary_columns(self) -> list[str]:
        """The columns with image bytes."""
        return [field.name for field in self.columns if isinstance(field.dataType, BinaryType)]

    @property
    def codec(self) -> str:
        """The codec of the table's files: none if they hold images, which are compressed already."""
        return "uncompressed" if self.binary_columns else "zstd"

    @property
    def column_schema(self) -> dg.TableSchema:
        """The columns, for Dagster's UI."""
        return dg.TableSchema(
            columns=[
                dg.TableColumn(
                    name=field.name,
                    type=field.dataType.simpleString(),
                    description=(field.metadata or {}).get("comment"),
                    constraints=dg.TableColumnConstraints(nullable=field.name not in self.keys),
                )
                for field in self.columns
            ]
        )

    @property
    def column_lineage(self) -> dg.TableColumnLineage:
        """The columns that come unchanged from upstream tables."""
        carried = {
            field.name: [
                dg.TableColumnDep(asset_key=dg.AssetKey(table.name), column_name=field.name)
                for table in self.made_from
                if field in table.columns.fields
            ]
            for field in self.columns
        }
        return dg.TableColumnLineage({name: columns for name, columns in carried.items() if columns})


@dataclass(frozen=True)
class Snapshot:
    """A table's size at one version."""

    rows: int
    version: int


@dataclass(frozen=True)
class Change:
    """What a materialization did to a table."""

    before: Snapshot
    after: Snapshot

    @property
    def rows_added(self) -> int:
        """The number of added rows; negative if rows were removed."""
        return self.after.rows - self.before.rows


@dataclass(frozen=True)
class FileSizes:
    """Below which size a file is small, and up to which size compaction joins small files."""

    minimum_bytes: int = 48 * MEBIBYTE
    maximum_bytes: int = 192 * MEBIBYTE

    def __post_init__(self) -> None:
        """Compacted files must not be small again, or they would be rewritten forever."""
        if not 0 < 2 * self.minimum_bytes <= self.maximum_bytes:
            raise ValueError(
                f"files from {self.minimum_bytes:,} to {self.maximum_bytes:,} bytes: "
                "expected a maximum of at least twice the minimum, such as 48 and 192 MB"
            )


@dataclass(frozen=True)
class Compaction:
    """A table's files, and those that compaction would rewrite: all below a size, or none."""

    files: int
    small_files: int
    rewritten_files: int
    rewritten_bytes: int
    below_bytes: int

    @property
    def pays(self) -> bool:
        """Whether there is anything worth rewriting."""
        return self.rewritten_files > 0


def plan_compaction(sizes: Sequence[int], limits: FileSizes) -> Compaction:
    """The compaction of files of these sizes: as many small files as are worth rewriting, smallest first."""
    small = sorted(size for size in sizes if size < limits.minimum_bytes)
    sums = list(accumulate(small))
    worth_it = [
        index
        for index, size in enumerate(small)
        if index + 1 >= SMALL_FILES and sums[index] >= GROWTH * size and small[index + 1 : index + 2] != [size]
    ]
    if not worth_it:
        return Compaction(len(sizes), len(small), 0, 0, 0)
    last = worth_it[-1]
    return Compaction(len(sizes), len(small), last + 1, sums[last], small[last] + 1)


def parquet_settings(table: Table) -> dict[str, str]:
    """Spark settings for the table's files: the same for appends, merges and compaction.

    They belong to the session, because Delta passes no writer option to Parquet except the codec.
    """
    settings = {
        "spark.sql.parquet.compression.codec": table.codec,
        "parquet.block.size": str(TABLE_ROW_GROUP_BYTES),
    }
    if table.binary_columns:
        # Rows between two checks of a row group's size; with the default of 100, large images would fill gigabytes.
        settings["parquet.page.size.row.check.min"] = str(ROW_CHECK_MIN)
        settings["parquet.page.size.row.check.max"] = str(ROW_CHECK_MAX)
    for column in table.binary_columns:
        settings[f"parquet.enable.dictionary#{column}"] = "false"  # no image occurs twice
        settings[f"parquet.column.statistics.enabled#{column}"] = "false"  # nobody filters by image bytes
    return settings


def file_layout(table: Table) -> FileLayout:
    """The layout of the table's files that pyarrow writes."""
    return FileLayout(to_arrow_schema(table.columns), table.codec, tuple(table.statistics_columns))


@contextmanager
def session_settings(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session inside the block; afterwards it has its own settings again."""
    before = {name: spark.conf.get(name, None) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, value)
