"""Mosaic Streaming: photographs in MDS files, decoded and resized with Pillow in two persistent workers."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from benchmarks.feeding import BATCH_IMAGES, WORKERS, Batch, feed, to_pillow_pixels
from benchmarks.photographs import files_in, number_of
from benchmarks.task import Task, read_task, timed


def prepare(task: Task) -> None:
    """Write the MDS files."""
    with timed(), MDSWriter(out=task.target, columns={"content": "bytes", "number": "int"}) as shards:
        for file in sorted(files_in(Path(task.source))):
            shards.write({"content": file.read_bytes(), "number": number_of(file)})


class Photographs(StreamingDataset):
    """The photographs in MDS files."""

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        photograph = super().__getitem__(place)
        return to_pillow_pixels(BytesIO(photograph["content"])), photograph["number"]


def main() -> None:
    """Write the MDS files, or feed batches from them."""
    task = read_task()
    if task.benchmark == "prepare":
        prepare(task)
        return
    images = Photographs(local=task.source, shuffle=False, batch_size=BATCH_IMAGES)
    loader = DataLoader(images, BATCH_IMAGES, num_workers=WORKERS, persistent_workers=True)

    def epoch() -> Iterator[Batch]:
        return ((pixels.numpy(), numbers.numpy()) for pixels, numbers in loader)

    feed(epoch, task.target)


if __name__ == "__main__":
    main()
