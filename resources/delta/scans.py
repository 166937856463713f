"""Scans of a Delta table's files by pyarrow: columns of some rows, without Spark."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaProtocolError
from pyarrow.dataset import FileSystemDataset, ParquetFileFormat, ParquetFragmentScanOptions, Scanner

from resources.delta.parquet_files import located

# pyarrow 14 opens files in threads of its own, whatever it is asked. If they read through Python, and still run when
# Python exits, they abort it. Local files are therefore read without Python, and others with as few threads as it can.
UNTHREADED: dict[str, Any] = {
    "use_threads": False,
    "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False),
}
PARTITION = "partition."  # before the name of a column in delta-rs's list of files
READER_FEATURES = {"timestampNtz"}  # those that change nothing in which rows the files hold
COLUMN_MAPPING_VERSION = 2  # of readers, before features had names


def scan(rows: FileSystemDataset, columns: Sequence[str], where: pc.Expression | None = None) -> Scanner:
    """The columns of the rows that match; null where a file lacks a column."""
    return rows.scanner(columns=list(columns), filter=where, **UNTHREADED)


def scan_in_batches(
    rows: FileSystemDataset, columns: Sequence[str], where: pc.Expression | None
) -> Iterator[pa.RecordBatch]:
    """The same, one row group after the other: a scan of all files reads ahead in threads."""
    for file in rows.get_fragments(where):
        for group in file.split_by_row_group(where, rows.schema):
            found = Scanner.from_fragment(group, schema=rows.schema, columns=list(columns), filter=where, **UNTHREADED)
            yield from found.to_table().to_batches()


def dataset(log: DeltaTable, schema: pa.Schema | None = None) -> FileSystemDataset:
    """The table's files; `schema` is that of the table by default.

    Raises:
        DeltaError: The files alone do not say which rows the table has, or what its columns are called.
    """
    partitions = log.metadata().partition_columns
    if not partitions and not log.table_uri.startswith("file://"):
        return log.to_pyarrow_dataset(schema=schema)
    system, path = located(log.table_uri)
    below = pafs.SubTreeFileSystem(path, system)
    if partitions:
        return _partitioned(log, partitions, below)
    return log.to_pyarrow_dataset(filesystem=below, schema=schema)


def _partitioned(log: DeltaTable, partitions: Sequence[str], system: pafs.FileSystem) -> FileSystemDataset:
    # delta-rs 1.5 calls a function for these columns that pyarrow 14 does not have.
    protocol = log.protocol()
    features = set(protocol.reader_features or ()) - READER_FEATURES
    if features or protocol.min_reader_version == COLUMN_MAPPING_VERSION:
        found = ", ".join(sorted(features)) or "columnMapping"
        raise DeltaProtocolError(f"the table is partitioned and has {found}, which is not supported together")
    schema = pa.schema(log.schema().to_arrow())
    files = log.get_add_actions(flatten=True)
    values = [files[f"{PARTITION}{name}"].to_pylist() for name in partitions]
    kind = ParquetFileFormat()
    fragments = [
        kind.make_fragment(unquote(path), system, _all_equal(schema, dict(zip(partitions, in_file, strict=True))))
        for path, *in_file in zip(files["path"].to_pylist(), *values, strict=True)
    ]
    return FileSystemDataset(fragments, schema, kind, system)


def _all_equal(schema: pa.Schema, values: Mapping[str, object]) -> pc.Expression:
    conditions = [
        pc.field(name).is_null() if value is None else pc.field(name) == pa.scalar(value, schema.field(name).type)
        for name, value in values.items()
    ]
    return reduce(and_, conditions)
