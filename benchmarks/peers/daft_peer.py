"""The same work in Daft, on its native runner."""

import daft
from daft import DataType, Series, col
from daft.functions import decode_image, download, encode_image

from benchmarks.task import Task, read_task, timed, to_gray, to_sha256

BATCH_ROWS = 64


@daft.func.batch(return_dtype=DataType.string())
def sha256(contents: Series) -> list[str]:
    """Hashing lets go of Python's lock: threads are enough."""
    return [to_sha256(content) for content in contents.to_pylist()]


def ingest(task: Task) -> None:
    """Files found by a pattern, downloaded by Daft itself, hashed in batches, written to Delta."""
    images = daft.from_glob_path(f"{task.source}/**/*.jpg").select("path", "size")
    images = images.with_column("content", download(col("path")))
    images = images.with_column("image_id", sha256(col("content")))
    images.write_deltalake(task.target, mode="overwrite")


def grayscale(task: Task) -> None:
    """By Daft's own image functions, or by a function for a batch in two processes."""
    images = daft.read_deltalake(f"{task.source}/tables/featured_images").select("path", "label", "content")
    if task.kernel == "native":
        gray = encode_image(decode_image(col("content"), mode="L"), "PNG")
    else:
        kernel = to_gray(task.kernel)

        @daft.func.batch(return_dtype=DataType.binary(), use_process=True, max_concurrency=2, batch_size=BATCH_ROWS)
        def in_gray(contents: Series) -> list[bytes]:
            return [kernel(content) for content in contents.to_pylist()]

        gray = in_gray(col("content"))
    images.with_column("content", gray).write_deltalake(task.target, mode="overwrite")


def main() -> None:
    """Do the task."""
    task = read_task()
    daft.set_runner_native()
    with timed():
        {"ingest": ingest, "grayscale": grayscale}[task.benchmark](task)


if __name__ == "__main__":
    main()
