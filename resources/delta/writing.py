"""Writing a table: tasks turn new rows of its upstream into Parquet files in the table's folder.

No reader sees the files before `DeltaTables.append_files` commits them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyspark import inheritable_thread_target
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from resources.delta.arrow_rows import BATCH_ROWS, Row, SetAside
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import TASK_BYTES, executor_for
from resources.delta.new_rows import READ_ROWS, NewRows, Task
from resources.delta.parquet_files import TASK_ROW_GROUP_BYTES, WrittenFile, write_files
from resources.delta.spark_session import counting_tasks, task_count
from resources.delta.table import FileSizes, Table, file_layout


@dataclass(frozen=True)
class Written:
    """The files that tasks wrote, and the rows that they set aside."""

    files: list[WrittenFile]
    aside: list[Row]


def write_by_tasks(
    delta_tables: DeltaTables,
    new: NewRows,
    columns: Sequence[str],
    into: Table,
    *,
    by: Callable[[Iterable[Row]], Iterable[Row | SetAside]],
    doing: str = "processed",
    task_bytes: int = TASK_BYTES,
) -> Written:
    """Let tasks write what `by` makes of new rows into the table's folder, without a commit.

    Each task reads its part of the files and writes its own files: no image travels between processes.

    Args:
        delta_tables: The tables.
        new: The new rows.
        columns: The columns that `by` gets.
        into: The table that gets the results.
        by: Makes rows with all columns of `into`, or rows that are set aside, of the rows of one task.
        doing: What the progress line calls it.
        task_bytes: Less work gets no further thread.
    """
    delta_tables.create(into)
    executor = executor_for(delta_tables.pyspark, new.all_bytes, task_bytes)
    tasks = executor.task_count(writing_tasks(new))
    task = Task(new, tuple(columns), by, delta_tables.uri(into), file_layout(into), tasks)
    with delta_tables.progress_line(doing, new.total, "images", before=new.before) as progress:
        done = executor.run(task, range(tasks), progress, rows=new.count)
    return Written(
        files=[file for files, _ in done for file in files], aside=[row for _, aside in done for row in aside]
    )


def write_by_dataframe(
    delta_tables: DeltaTables,
    new: NewRows,
    columns: StructType,
    into: Table,
    *,
    by: Callable[[DataFrame], DataFrame],
    doing: str,
) -> list[WrittenFile]:
    """Write what `by` makes of a DataFrame of new rows into the table's folder, without a commit.

    The results pass through this process, so they hold no images.

    Args:
        delta_tables: The tables.
        new: The new rows.
        columns: The columns of the DataFrame; they are in the files by these names.
        into: The table that gets the results.
        by: Makes rows with all columns of `into`, in as many tasks as its DataFrame has partitions.
        doing: What the progress line calls it.
    """
    delta_tables.create(into)
    spark = delta_tables.spark
    tasks = task_count(spark, writing_tasks(new))
    schema = to_arrow_schema(columns)

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in (part for batch in batches for part in batch["id"].to_pylist()):
            for rows in new.tables(schema.names, part, tasks):
                yield from rows.select(schema.names).cast(schema).to_batches(READ_ROWS)

    read_in_tasks: Any = read  # pyarrow has no types
    images = spark.range(0, tasks, 1, tasks).mapInArrow(read_in_tasks, columns)
    if new.size_bytes < tasks * TASK_ROW_GROUP_BYTES:
        images = images.repartition(tasks)  # there are fewer row groups than tasks
    with (
        delta_tables.progress_line(doing, new.total, "images", before=new.before) as progress,
        counting_tasks(spark, progress, rows=new.count, tasks=tasks),
    ):
        rows = collected(by(images).select(into.columns.fieldNames()))
    results = (row for batch in rows.to_batches(BATCH_ROWS) for row in batch.to_pylist())
    return list(write_files(results, delta_tables.uri(into), file_layout(into)))


def collected(rows: DataFrame) -> pa.Table:
    """The rows, collected by a thread, so that an interrupt cancels the Spark job; `toArrow` would wait for its end."""
    context, tag = rows.sparkSession.sparkContext, f"collected-{uuid4().hex}"
    context.addJobTag(tag)
    try:
        with ThreadPoolExecutor(1) as threads:
            collecting = threads.submit(inheritable_thread_target(rows.sparkSession)(rows.toArrow))
            try:
                return collecting.result()
            except BaseException:
                context.cancelJobsWithTag(tag)
                raise
    finally:
        context.removeJobTag(tag)


def writing_tasks(new: NewRows) -> int:
    """How many tasks write files of a good size."""
    return new.size_bytes // FileSizes.minimum_bytes
