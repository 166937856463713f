"""An external table, such as a label table: a CSV or Parquet file or a Delta table, on disk or at an fsspec URL."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import csv
from pyarrow.dataset import ParquetFragmentScanOptions
from pydantic import Field

from resources.files.file_system import to_time, uncached_file_system

CSV, PARQUET = ".csv", ".parquet"
EXPECTED = f"a file ending in {CSV} or {PARQUET}, or the folder of a Delta table"


@dataclass(frozen=True)
class ExternalRows:
    """An external table's rows, as strings; `version` is from before reading, `content` identifies what was read."""

    rows: pa.Table
    version: str
    content: str


class ExternalTable(dg.ConfigurableResource):
    """An external table, or none."""

    source: str = Field(default="", description=f"{EXPECTED[0].upper()}{EXPECTED[1:]}; none by default.")

    def version(self) -> str:
        """A text that changes with the table, without reading it; empty if no table is set.

        Raises:
            FileNotFoundError: The table does not exist.
        """
        if not self.source:
            return ""
        if not self._is_file():
            return f"Delta version {self._log().version()}"
        system, path = uncached_file_system(self.source)
        try:
            info = system.info(path)
        except FileNotFoundError as error:
            raise self._missing() from error
        return f"{to_time(info).isoformat()}, {info['size']} bytes"

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> ExternalRows:
        """These columns, and those optional ones that exist, as strings.

        Raises:
            FileNotFoundError: The table does not exist.
            ValueError: A column is missing, or the table cannot be read.
        """
        version = self.version()
        try:
            rows, content = self._file_rows() if self._is_file() else self._delta_rows()
            names = [*columns, *(name for name in optional if name in rows.column_names)]
            if lacking := [name for name in names if rows.column_names.count(name) != 1]:
                raise ValueError(f"expected one column {lacking[0]}, found the columns {', '.join(rows.column_names)}")
            texts = [rows[name].cast(pa.string()) for name in names]
        except (pa.ArrowException, DeltaError, ValueError) as error:
            raise ValueError(f"{self.source} cannot be read: {error}; expected {EXPECTED}") from error
        return ExternalRows(pa.table(dict(zip(names, texts, strict=True))), version, content)

    def _is_file(self) -> bool:
        return self.source.lower().endswith((CSV, PARQUET))

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(f"{self.source} does not exist: expected {EXPECTED}")

    def _log(self) -> DeltaTable:
        try:
            return DeltaTable(self.source)
        except TableNotFoundError as error:
            raise self._missing() from error

    def _file_rows(self) -> tuple[pa.Table, str]:
        system, path = uncached_file_system(self.source)
        content = system.cat_file(path)
        file = pa.BufferReader(content)
        rows = csv_rows(file) if self.source.lower().endswith(CSV) else pq.read_table(file, use_threads=False)
        return rows, f"SHA-256 {sha256(content).hexdigest()}"

    def _delta_rows(self) -> tuple[pa.Table, str]:
        log = self._log()
        # As in DeltaTables: threads that read through delta-rs may abort Python when it exits (pyarrow 14).
        unthreaded = {"use_threads": False, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
        return log.to_pyarrow_dataset().scanner(**unthreaded).to_table(), f"Delta version {log.version()}"


def csv_rows(file: pa.NativeFile) -> pa.Table:
    """The rows of a CSV file, all columns as strings, so that `007` and `NA` stay as they are."""
    names = csv.open_csv(file).schema.names
    file.seek(0)
    as_written = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return csv.read_csv(file, csv.ReadOptions(use_threads=False), csv.ParseOptions(newlines_in_values=True), as_written)
