"""The ingest and grayscale tasks in Ray Data, on two CPUs."""

import logging

import pyarrow as pa
import ray
from deltalake import DeltaTable

from benchmarks.task import Task, read_task, timed, to_gray, to_sha256

BATCH_ROWS = 64
BLOCKS = 8  # enough for two CPUs to share, whatever the file sizes


def hashed(images: pa.Table) -> pa.Table:
    """The images with their hashes."""
    return images.append_column("image_id", pa.array([to_sha256(value.as_py()) for value in images["bytes"]]))


def ingest(task: Task) -> None:
    """Read files with Ray, hash them in Arrow batches, write them to Parquet."""
    images = ray.data.read_binary_files(task.source, include_paths=True, file_extensions=["jpg"])
    images = images.map_batches(hashed, batch_format="pyarrow").rename_columns({"bytes": "content"})
    images.write_parquet(task.target)


def grayscale(task: Task) -> None:
    """Convert with a function on Arrow batches."""
    kernel = to_gray(task.kernel)

    def in_gray(images: pa.Table) -> pa.Table:
        gray = pa.array([kernel(value.as_py()) for value in images["content"]], pa.binary())
        return images.set_column(images.schema.get_field_index("content"), "content", gray)

    files = DeltaTable(f"{task.source}/tables/featured_images").file_uris()
    images = ray.data.read_parquet(files, columns=["path", "label", "content"], override_num_blocks=BLOCKS)
    images.map_batches(in_gray, batch_size=BATCH_ROWS, batch_format="pyarrow").write_parquet(task.target)


def main() -> None:
    """Run the task."""
    task = read_task()
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    with timed():
        {"ingest": ingest, "grayscale": grayscale}[task.benchmark](task)
    ray.shutdown()


if __name__ == "__main__":
    main()
