"""The ingest and grayscale tasks in Daft, on its native runner."""

import daft
from daft import DataType, Series, col
from daft.functions import decode_image, download, encode_image

from benchmarks.task import Task, read_task, timed, to_gray, to_sha256

BATCH_ROWS = 64


@daft.func.batch(return_dtype=DataType.string())
def sha256(contents: Series) -> list[str]:
    """The hash of each file; threads suffice, because hashing releases Python's global lock."""
    return [to_sha256(content) for content in contents.to_pylist()]


def ingest(task: Task) -> None:
    """Find files by a pattern, download them with Daft, hash them in batches, write them to Delta."""
    images = daft.from_glob_path(f"{task.source}/**/*.jpg").select("path", "size")
    images = images.with_column("content", download(col("path")))
    images = images.with_column("image_id", sha256(col("content")))
    images.write_deltalake(task.target, mode="overwrite")


@daft.cls(use_process=True, max_concurrency=2)
class InGray:
    """Converts batches in two processes."""

    def __init__(self, kernel: str) -> None:
        self.to_gray = to_gray(kernel)

    @daft.method.batch(return_dtype=DataType.binary(), batch_size=BATCH_ROWS)
    def of(self, contents: Series) -> list[bytes]:
        """The images in grayscale."""
        return [self.to_gray(content) for content in contents.to_pylist()]


def grayscale(task: Task) -> None:
    """Convert with Daft's own image functions, or with a batch function."""
    images = daft.read_deltalake(f"{task.source}/tables/featured_images").select("path", "label", "content")
    if task.kernel == "native":
        gray = encode_image(decode_image(col("content"), mode="L"), "PNG")
    else:
        gray = InGray(task.kernel).of(col("content"))
    images.with_column("content", gray).write_deltalake(task.target, mode="overwrite")


def main() -> None:
    """Run the task."""
    task = read_task()
    daft.set_runner_native()
    with timed():
        {"ingest": ingest, "grayscale": grayscale}[task.benchmark](task)


if __name__ == "__main__":
    main()
