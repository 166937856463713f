"""SQL over columns of the tables, streamed into DuckDB, which writes to disk what does not fit into its memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "2GB"


@contextmanager
def querying(**relations: pa.Table | pa.RecordBatchReader) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A DuckDB connection with these relations by name; each batch reader can be read by one query."""
    import duckdb

    with TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": folder}
        settings["preserve_insertion_order"] = False  # it takes memory; a query that needs an order names it
        with duckdb.connect(config=settings) as connection:
            for name, relation in relations.items():
                connection.register(name, relation)
            yield connection


def query(sql: str, **relations: pa.Table | pa.RecordBatchReader) -> pa.Table:
    """The result of a query on the relations."""
    with querying(**relations) as connection:
        return connection.sql(sql).arrow().read_all()


def count(sql: str, **relations: pa.Table | pa.RecordBatchReader) -> int:
    """The number of rows of a query on the relations."""
    return query(f"SELECT count(*) AS count FROM ({sql})", **relations)["count"][0].as_py()


def repeated_keys(delta_tables: DeltaTables, table: Table) -> int:
    """How many keys of the table have several rows."""
    keys = ", ".join(f'"{key}"' for key in table.keys)
    # Equal keys have equal hashes: the keys themselves are compared only if hashes are repeated, perhaps by chance.
    for grouped in (f"hash({keys})", keys):
        sql = f"SELECT 1 FROM keys_of_rows GROUP BY {grouped} HAVING count(*) > 1"
        found = count(sql, keys_of_rows=delta_tables.batches(table, table.keys))
        if not found:
            break
    return found


def missing_keys(expected: pa.RecordBatchReader, there: pa.RecordBatchReader, keys: Sequence[str]) -> int:
    """How many of the expected rows have keys that are not there."""
    using = ", ".join(keys)
    return count(f"SELECT 1 FROM expected ANTI JOIN there USING ({using})", expected=expected, there=there)
