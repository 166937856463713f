"""The columns that a Delta table is made with, and those that it gets when it was made with fewer."""

from deltalake import DeltaTable, Field, Schema
from deltalake.exceptions import CommitFailedError

from resources.delta_log import LOG_RETENTION, RETENTION_PROPERTY, STATISTICS_PROPERTY
from resources.tables import Table


def make(uri: str, table: Table) -> None:
    """Make the table, empty, with all columns; nothing where another process was faster."""
    configuration = {**_statistics(table), RETENTION_PROPERTY: LOG_RETENTION}
    DeltaTable.create(uri, Schema.from_json(table.columns.json()), mode="ignore", configuration=configuration)


def add_columns(log: DeltaTable, table: Table) -> bool:
    """Add the columns that the table was made without, as nulls in its rows; whether any lacked."""
    lacking = _lacking(log, table)
    if lacking:
        try:
            log.alter.add_columns(lacking)
            log.alter.set_table_properties(_statistics(table))
        except CommitFailedError:  # where another process has added them meanwhile, all is well
            log.update_incremental()
            if _lacking(log, table):
                raise
    return bool(lacking)


def _statistics(table: Table) -> dict[str, str]:
    return {STATISTICS_PROPERTY: ",".join(table.statistics_columns)}


def _lacking(log: DeltaTable, table: Table) -> list[Field]:
    there = {field.name for field in log.schema().fields}
    return [field for field in Schema.from_json(table.columns.json()).fields if field.name not in there]
