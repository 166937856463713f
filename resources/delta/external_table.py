"""An external table, such as a label table: files or a Delta table, on disk or at an fsspec URL."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from hashlib import file_digest, sha256
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pydantic import Field

from resources.delta.annotation_files import read_cvat, read_json, read_json_lines
from resources.delta.delimited_text import FileRows, read_delimited
from resources.delta.delta_log import first_line
from resources.delta.scans import dataset, scan
from resources.files.file_system import to_time, uncached_file_system

PARQUET = ".parquet"
READERS: dict[str, Callable[[bytes], FileRows]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), read_delimited),
    ".json": read_json,
    **dict.fromkeys((".jsonl", ".ndjson"), read_json_lines),
    ".xml": read_cvat,
}
SUFFIXES = (*READERS, PARQUET)
EXPECTED = f"a file ending in {', '.join(SUFFIXES[:-1])} or {PARQUET}, or the folder of a Delta table"
DELTA_LOG = "_delta_log"
NO_COLUMN = "none"  # as the label column: the table gives no labels
HUGGING_FACE = b"huggingface"  # in a Parquet schema's metadata: the names of its ClassLabel columns


@dataclass(frozen=True)
class ExternalRows:
    """An external table's rows, as strings; `version` is from before reading, `content` identifies what was read.

    `numbers` are the rows' numbers in their file, and `folders` the folders of their files. `problems` say what is
    wrong with rows that could not be read, and `notes` how the files were read.
    """

    rows: pa.Table
    version: str
    content: str
    numbers: Sequence[int] = ()
    folders: Sequence[str] = ()
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


class ExternalTable(dg.ConfigurableResource):
    """An external table, or none."""

    source: str = Field(
        default="",
        description=f"{EXPECTED[0].upper()}{EXPECTED[1:]}; `*` in it stands for any name. None by default.",
    )
    path_column: str = Field(default="", description="The column with the paths. Default: one of the usual names.")
    label_column: str = Field(
        default="",
        description=f"The column with the labels, or `{NO_COLUMN}`. Default: one of the usual names.",
    )

    def version(self) -> str:
        """A text that changes with the table, without reading it; empty if no table is set.

        Raises:
            FileNotFoundError: The table does not exist.
            ValueError: The log of the Delta table cannot be read.
        """
        if not self.source:
            return ""
        if not self._is_file():
            return f"Delta version {self._log().version()}"
        system, paths = self._files()
        try:
            versions = [f"{to_time(info).isoformat()}, {info['size']} bytes" for info in map(system.info, paths)]
        except FileNotFoundError as error:
            raise self._missing() from error
        if len(versions) == 1:
            return versions[0]
        return f"{len(paths)} files, SHA-256 {sha256(json.dumps([paths, versions]).encode()).hexdigest()}"

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> ExternalRows:
        """These columns, and those optional ones that exist, as strings.

        Raises:
            FileNotFoundError: The table does not exist.
            ValueError: A column is missing, or the table or one of its rows cannot be read.
        """
        found = self.read_all()
        names = [*columns, *(name for name in optional if name in found.rows.column_names)]
        lacking = [name for name in names if found.rows.column_names.count(name) != 1]
        if lacking or found.problems:
            columns_found = f"expected one column {lacking[0]}, found the columns" if lacking else found.problems[0]
            listed = f" {', '.join(found.rows.column_names)}" if lacking else ""
            raise self._unreadable(f"{columns_found}{listed}")
        return ExternalRows(found.rows.select(names), found.version, found.content)

    def read_all(self) -> ExternalRows:
        """All columns but those with bytes, as strings, also those that several files do not share.

        Raises:
            FileNotFoundError: The table does not exist.
            ValueError: The table cannot be read.
        """
        version = self.version()
        try:
            if not self._is_file():
                log = self._log()
                rows, notes = delta_rows(log)
                content = f"Delta version {log.version()}"
                return ExternalRows(rows, version, content, range(1, len(rows) + 1), (), (), notes)
            return self._file_rows(version)
        except (pa.ArrowException, DeltaError, ValueError, OSError) as error:  # OSError also for damaged Parquet files
            raise self._unreadable(first_line(error)) from error

    def _unreadable(self, why: object) -> ValueError:
        return ValueError(f"{self.source} cannot be read: {why}; expected {EXPECTED}")

    def _is_file(self) -> bool:
        if not self.source.lower().endswith(SUFFIXES):
            return False
        system, path = uncached_file_system(self.source)
        return not system.exists(f"{path}/{DELTA_LOG}")

    def _files(self) -> tuple[Any, list[str]]:  # Any: fsspec's types depend on the arguments
        system, path = uncached_file_system(self.source)
        if "*" not in path and (system.isfile(path) or not system.isdir(path)):
            return system, [path]
        # A folder that is called like a file, as Spark writes it, has the table's parts in it.
        pattern = path if "*" in path else f"{path}/*{PurePosixPath(path).suffix}"
        paths = sorted(str(found) for found in system.glob("*".join(map(escape, pattern.split("*")))))
        if not paths:
            raise self._missing()
        return system, paths

    def _missing(self) -> FileNotFoundError:
        system, path = uncached_file_system(self.source)
        if system.isdir(path):
            what = f"is a folder without a Delta table: expected {EXPECTED}; {self.source}/*{PARQUET} means its files"
            return FileNotFoundError(f"{self.source} {what}")
        return FileNotFoundError(f"{self.source} does not exist: expected {EXPECTED}")

    def _log(self) -> DeltaTable:
        try:
            return DeltaTable(self.source)
        except DeltaError as error:
            system, path = uncached_file_system(self.source)
            if system.isfile(path):
                raise ValueError(f"{self.source} has an unknown format: expected {EXPECTED}") from error
            missing = isinstance(error, TableNotFoundError)
            raise (self._missing() if missing else self._unreadable(first_line(error))) from error

    def _file_rows(self, version: str) -> ExternalRows:
        system, paths = self._files()
        tables, digests, numbers, folders, problems, notes = [], [], [], [], [], []
        for path in paths:
            prefix = f"{path.rpartition('/')[2]}: " if len(paths) > 1 else ""
            with system.open(path, "rb") as file:
                try:
                    rows, found = file_rows(file, path)
                except (pa.ArrowException, ValueError, OSError) as error:
                    raise ValueError(f"{prefix}{error}") from error
                file.seek(0)
                digests.append(file_digest(file, "sha256").hexdigest())
            tables.append(rows)
            numbers += found.numbers
            folders += [path.rpartition("/")[0]] * len(rows)
            problems += [f"{prefix}{problem}" for problem in found.problems]
            notes += [f"{prefix}{note}" for note in found.notes]
        digest = digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()
        rows = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
        return ExternalRows(rows, version, f"SHA-256 {digest}", numbers, folders, problems, notes)


def file_rows(file: BinaryIO, path: str) -> tuple[pa.Table, FileRows]:
    """The rows of a file, by its suffix, with their numbers, problems and notes."""
    suffix = next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))
    if suffix == PARQUET:
        rows, notes = parquet_rows(file)
        return rows, FileRows([], [], [*range(1, len(rows) + 1)], [], notes)
    found = READERS[suffix](file.read())
    columns = zip(*found.rows, strict=True) if found.rows else ([] for _ in found.names)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], found.names), found


def parquet_rows(file: BinaryIO) -> tuple[pa.Table, list[str]]:
    """The rows of a Parquet file without its bytes, such as those of images in Hugging Face's datasets."""
    parquet = pq.ParquetFile(file)
    rows = parquet.read(columns=texts_in(parquet.schema_arrow), use_threads=False)
    named, notes = with_class_names(rows, parquet.schema_arrow.metadata)
    texts, more = to_texts(named)
    return texts, [*notes, *more]


def delta_rows(log: DeltaTable) -> tuple[pa.Table, list[str]]:
    """The rows of a Delta table without its bytes."""
    files = dataset(log)
    columns = [field.name for field in files.schema if not is_binary(field.type)]
    return to_texts(scan(files, columns).to_table())


def is_binary(of: pa.DataType) -> bool:
    """Whether these are bytes."""
    return pa.types.is_binary(of) or pa.types.is_large_binary(of) or pa.types.is_fixed_size_binary(of)


def texts_in(schema: pa.Schema) -> list[str]:
    """The columns without bytes; of a struct, such as an image's bytes and path, its fields without bytes."""
    names = []
    for column in schema:
        if pa.types.is_struct(column.type):
            names += [f"{column.name}.{field.name}" for field in column.type if not is_binary(field.type)]
        elif not is_binary(column.type):
            names.append(column.name)
    return names


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of Hugging Face's classes, by column, in a Parquet schema's metadata."""
    try:
        info = json.loads((metadata or {}).get(HUGGING_FACE, b"{}"))
    except ValueError:
        return {}
    features = info
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, dict) else None
    if not isinstance(features, dict):
        return {}
    classes = {
        name: feature.get("names")
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return {name: [*map(str, names)] for name, names in classes.items() if isinstance(names, list)}


def class_name(value: object, names: Sequence[str]) -> str | None:
    """The name of a class by its number, and None for -1, which means none; any other value as a text."""
    if value is None or value == -1:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)


def with_class_names(rows: pa.Table, metadata: Mapping[bytes, bytes] | None) -> tuple[pa.Table, list[str]]:
    """The rows with the names of Hugging Face's classes in place of their numbers; and notes about other numbers."""
    notes = []
    for name, names in class_names(metadata).items():
        if name not in rows.column_names or not pa.types.is_integer(rows[name].type):
            continue
        numbers = rows[name].to_pylist()
        labels = pa.array([class_name(number, names) for number in numbers], pa.string())
        outside = sum(number is not None and not -1 <= number < len(names) for number in numbers)
        if outside:
            notes.append(f"the column {name} has {outside:,} numbers without a class name, which are kept as numbers")
        rows = rows.set_column(rows.column_names.index(name), name, labels)
    return rows, notes


def to_texts(rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """The columns as strings, and notes about those that cannot be converted; `image.path` is called `image`."""
    columns, names, notes = [], [], []
    for name, column in zip((flat := rows.flatten()).column_names, flat.columns, strict=True):
        try:
            columns.append(column.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            notes.append(f"the column {name} holds {column.type} and was left out")
        else:
            names.append(name.removesuffix(".path"))
    return pa.table(columns, names), notes
