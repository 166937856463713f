"""Checks that no two rows of a table have the same keys."""

import dagster as dg

from resources.delta_tables import DeltaTables
from resources.tables import Table

MEND_KEYS = (
    "something wrote to the table beside its asset; end that, let `make audit` name the rows, and delete the repeated "
    "ones with a Delta writer"
)


def keys_unique(table: Table) -> dg.AssetChecksDefinition:
    """The check that no two rows of the table have the same keys."""

    @dg.asset_check(
        asset=table.name,
        name="keys_unique",
        description=f"One row for each {', '.join(table.keys)}. If it fails: {MEND_KEYS}.",
    )
    def check(delta_tables: DeltaTables) -> dg.AssetCheckResult:
        rows = delta_tables.thin.read(table, table.keys).to_pandas()
        repeated = len(rows[rows.duplicated(keep=False)].drop_duplicates())
        return dg.AssetCheckResult(
            passed=repeated == 0,
            metadata={"repeated_keys": repeated},
            description=f"{repeated:,} keys have several rows: {MEND_KEYS}" if repeated else None,
        )

    return check
