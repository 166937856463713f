"""Torch's DataLoader: files decoded and resized with Pillow in two persistent workers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.feeding import BATCH_IMAGES, WORKERS, Batch, feed, to_pillow_pixels
from benchmarks.photographs import files_in, number_of
from benchmarks.task import read_task


class Photographs(Dataset):
    """The photographs in a folder."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(files_in(Path(folder)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        return to_pillow_pixels(self.files[place]), number_of(self.files[place])


def main() -> None:
    """Feed batches."""
    task = read_task()
    loader = DataLoader(Photographs(task.source), BATCH_IMAGES, num_workers=WORKERS, persistent_workers=True)

    def epoch() -> Iterator[Batch]:
        return ((pixels.numpy(), numbers.numpy()) for pixels, numbers in loader)

    feed(epoch, task.target)


if __name__ == "__main__":
    main()
