"""The ingest and grayscale tasks in Hugging Face datasets, in two processes."""

from pathlib import Path

from datasets import Dataset, Features, Value, load_dataset
from deltalake import DeltaTable

from benchmarks.task import Task, read_task, timed, to_gray, to_sha256

BATCH_ROWS = 64
PROCESSES = 2
INGESTED = Features({"path": Value("string"), "image_id": Value("string"), "content": Value("binary")})


def read(files: dict[str, list[str]]) -> dict[str, list]:
    """The bytes and hashes of a batch of files."""
    contents = [Path(path).read_bytes() for path in files["path"]]
    return {"path": files["path"], "image_id": [to_sha256(content) for content in contents], "content": contents}


def ingest(task: Task) -> None:
    """Read and hash files in batches, write them to Parquet."""
    files = Dataset.from_dict({"path": [str(file) for file in Path(task.source).rglob("*.jpg")]})
    images = files.map(read, batched=True, batch_size=BATCH_ROWS, num_proc=PROCESSES, features=INGESTED)
    images.to_parquet(f"{task.target}/images.parquet")


def grayscale(task: Task) -> None:
    """Convert with a batch function."""
    kernel = to_gray(task.kernel)

    def in_gray(images: dict[str, list]) -> dict[str, list]:
        return {"content": [kernel(content) for content in images["content"]]}

    files = DeltaTable(f"{task.source}/tables/featured_images").file_uris()
    images = load_dataset("parquet", data_files=files, columns=["path", "label", "content"], split="train")
    gray = images.map(in_gray, batched=True, batch_size=BATCH_ROWS, num_proc=PROCESSES)
    gray.to_parquet(f"{task.target}/images.parquet")


def main() -> None:
    """Run the task."""
    task = read_task()
    Path(task.target).mkdir(parents=True, exist_ok=True)
    with timed():
        {"ingest": ingest, "grayscale": grayscale}[task.benchmark](task)


if __name__ == "__main__":
    main()
