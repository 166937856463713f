"""New rows of a table, read by tasks from the files that they were added with (runs in each task)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from resources.delta.arrow_rows import Row, SetAside, without_set_aside
from resources.delta.local_tasks import counted
from resources.delta.parquet_files import FileLayout, WrittenFile, open_parquet, write_files

READ_ROWS = 64
Key = tuple[object, ...]


@dataclass(frozen=True)
class NewRows:
    """Files of a table with new rows, and which of their rows to process.

    Attributes:
        files: The addresses of the files.
        version: The table's version up to which all rows are processed once these are; None if more come first.
        keys: The columns by which `skipped` and `wanted` identify rows.
        skipped: The keys of rows that are not processed.
        wanted: The keys of the only rows that are processed; None for all.
        size_bytes: The size of the files, or of the part of them that is processed.
        all_bytes: The size of the files of all batches.
        count: Rows to process, as far as the log counts them; an estimate if rows are skipped.
        before: Rows of earlier batches.
        total: Rows of all batches; None if the log does not count them.
    """

    files: tuple[str, ...]
    version: int | None
    keys: tuple[str, ...] = ()
    skipped: frozenset[Key] = frozenset()
    wanted: frozenset[Key] | None = None
    size_bytes: int = 0
    all_bytes: int = 0
    count: int = 0
    before: int = 0
    total: int | None = None

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The columns of all rows, in this process: for columns without images."""
        parts = list(self.tables(columns, 0, 1))
        none = pa.table({name: pa.nulls(0) for name in columns})
        return pa.concat_tables([none, *parts], promote_options="default")

    def rows(self, columns: Sequence[str], part: int, of: int) -> Iterator[Row]:
        """The columns of one part's rows, one row group after the other."""
        for table in self.tables(columns, part, of):
            for batch in table.to_batches(READ_ROWS):
                yield from batch.to_pylist()

    def tables(self, columns: Sequence[str], part: int, of: int) -> Iterator[pa.Table]:
        """The rows to process of one of `of` parts, by row group."""
        for number, file in enumerate(self.files):
            with open_parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    if (number + group) % of == part and (rows := self._chosen(parquet, group, columns)) is not None:
                        yield rows

    def _chosen(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table | None:
        chosen = None
        if self.skipped or self.wanted is not None:  # checked before images are read
            keys = parquet.read_row_group(group, list(self.keys), use_threads=False)
            chosen = [self._is_chosen(key) for key in zip(*(keys[name].to_pylist() for name in self.keys), strict=True)]
            if not any(chosen):
                return None
        rows = parquet.read_row_group(group, list(columns), use_threads=False)
        for name in columns:
            if name not in rows.column_names:  # the file is older than the column
                rows = rows.append_column(name, pa.nulls(len(rows)))
        return rows if chosen is None else rows.filter(pa.array(chosen))

    def _is_chosen(self, key: Key) -> bool:
        return key not in self.skipped and (self.wanted is None or key in self.wanted)


@dataclass(frozen=True)
class Task:
    """Writes files from one part of new rows."""

    new: NewRows
    columns: tuple[str, ...]
    by: Callable[[Iterable[Row]], Iterable[Row | SetAside]]
    folder: str
    layout: FileLayout
    parts: int

    def __call__(self, parts: Iterable[int]) -> Iterator[tuple[list[WrittenFile], list[Row]]]:
        """Read, process and write; yields the files, and the rows that were set aside."""
        for part in parts:
            aside: list[Row] = []
            made = self.by(counted(self.new.rows(self.columns, part, self.parts)))
            yield list(write_files(without_set_aside(made, aside), self.folder, self.layout)), aside
