"""The same work in Ray Data, on two CPUs."""

import logging

import pyarrow as pa
import ray
from deltalake import DeltaTable

from benchmarks.task import Task, read_task, timed, to_gray, to_sha256

BATCH_ROWS = 64
BLOCKS = 8  # so that two CPUs have something to share, however large the files


def hashed(images: pa.Table) -> pa.Table:
    """The images with their hash."""
    return images.append_column("image_id", pa.array([to_sha256(value.as_py()) for value in images["bytes"]]))


def ingest(task: Task) -> None:
    """Files read by Ray itself, hashed in Arrow batches, written to Parquet."""
    images = ray.data.read_binary_files(task.source, include_paths=True, file_extensions=["jpg"])
    images = images.map_batches(hashed, batch_format="pyarrow").rename_columns({"bytes": "content"})
    images.write_parquet(task.target)


def grayscale(task: Task) -> None:
    """A function for an Arrow batch."""
    kernel = to_gray(task.kernel)

    def in_gray(images: pa.Table) -> pa.Table:
        gray = pa.array([kernel(value.as_py()) for value in images["content"]], pa.binary())
        return images.set_column(images.schema.get_field_index("content"), "content", gray)

    files = DeltaTable(f"{task.source}/tables/featured_images").file_uris()
    images = ray.data.read_parquet(files, columns=["path", "label", "content"], override_num_blocks=BLOCKS)
    images.map_batches(in_gray, batch_size=BATCH_ROWS, batch_format="pyarrow").write_parquet(task.target)


def main() -> None:
    """Do the task."""
    task = read_task()
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    with timed():
        {"ingest": ingest, "grayscale": grayscale}[task.benchmark](task)
    ray.shutdown()


if __name__ == "__main__":
    main()
