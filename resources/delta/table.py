"""A table's definition, and its state before and after a materialization."""

from dataclasses import dataclass

import dagster as dg
from pyspark.sql.types import ArrayType, BinaryType, MapType, StructType

FILL = "fill"  # in a column's metadata: its value in rows that were written without it


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
