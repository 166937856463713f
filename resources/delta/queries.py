"""SQL over columns of the tables, streamed into DuckDB, which writes to disk what does not fit into its memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "2GB"
MAX_EXAMPLES = 5


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


@dataclass(frozen=True)
class Found:
    """How many rows were found, and a few of them by name."""

    count: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[str]) -> "Found":
        """Those in a list."""
        return cls(len(values), tuple(values[:MAX_EXAMPLES]))

    @classmethod
    def by(cls, sql: str, **relations: pa.Table | pa.RecordBatchReader) -> "Found":
        """Those that a query on the relations finds, named by its column `example`."""
        numbered = f"SELECT coalesce(example::VARCHAR, 'null') AS example, row_number() OVER () AS number FROM ({sql})"
        few = f"list(example) FILTER (number <= {MAX_EXAMPLES})"
        (row,) = query(f"SELECT count(*) AS count, {few} AS examples FROM ({numbered})", **relations).to_pylist()
        return cls(row["count"], tuple(row["examples"] or ()))


def repeated_keys(delta_tables: DeltaTables, table: Table) -> Found:
    """The keys of the table that have several rows."""
    keys = ", ".join(f'"{key}"' for key in table.keys)
    repeated = "FROM keys_of_rows GROUP BY {} HAVING count(*) > 1"
    # Equal keys have equal hashes: the keys themselves are compared only if hashes are repeated, perhaps by chance.
    by_hash = f"SELECT 1 {repeated.format(f'hash({keys})')}"
    if not count(by_hash, keys_of_rows=delta_tables.batches(table, table.keys)):
        return Found()
    by_keys = f'SELECT any_value("{table.keys[0]}") AS example {repeated.format(keys)}'
    return Found.by(by_keys, keys_of_rows=delta_tables.batches(table, table.keys))


def missing_keys(expected: pa.RecordBatchReader, there: pa.RecordBatchReader, keys: Sequence[str]) -> Found:
    """The expected rows with keys that are not there."""
    sql = f"SELECT {keys[0]} AS example FROM expected ANTI JOIN there USING ({', '.join(keys)})"
    return Found.by(sql, expected=expected, there=there)
