"""Thin Delta tables, read without Spark: a sensor has a second, and Spark takes six to start."""

import dagster as dg
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from resources.tables import Table


class ThinTables(dg.ConfigurableResource):
    """Columns of the Delta tables of one home, by delta-rs; for tables that hold no image bytes."""

    root: str

    def read(self, table: Table, columns: list[str]) -> pa.Table:
        """The columns of all rows as they are now; no rows where there is no table yet."""
        try:
            rows = DeltaTable(f"{self.root}/{table.name}")
        except TableNotFoundError:
            return pa.table({name: pa.array([], pa.null()) for name in columns})
        return rows.to_pyarrow_table(columns=columns)
