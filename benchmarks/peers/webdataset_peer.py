"""WebDataset: photographs in tar files, decoded and resized with Pillow in two workers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from benchmarks.feeding import BATCH_IMAGES, SIDE_PIXELS, WORKERS, Batch, feed
from benchmarks.photographs import files_in, number_of
from benchmarks.task import Task, read_task, timed

SHARDS = 8


def prepare(task: Task) -> None:
    """Write the tar files."""
    files = sorted(files_in(Path(task.source)))
    target = Path(task.target)
    target.mkdir(parents=True)
    with timed(), wds.ShardWriter(str(target / "%03d.tar"), maxcount=-(-len(files) // SHARDS), verbose=0) as shards:
        for file in files:
            shards.write({"__key__": file.stem, "jpg": file.read_bytes(), "cls": number_of(file)})


def to_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a decoded photograph: uint8 (224, 224, 3)."""
    return np.asarray(image.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR))


def keep_number(number: int) -> int:
    """The number, unchanged."""
    return number


def main() -> None:
    """Write the tar files, or feed batches from them."""
    task = read_task()
    if task.benchmark == "prepare":
        prepare(task)
        return
    shards = [str(file) for file in sorted(Path(task.source).glob("*.tar"))]
    images = wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    images = images.map_tuple(to_pixels, keep_number).batched(BATCH_IMAGES)
    loader = wds.WebLoader(images, batch_size=None, num_workers=WORKERS, persistent_workers=True)

    def epoch() -> Iterator[Batch]:
        return ((np.asarray(pixels), np.asarray(numbers)) for pixels, numbers in loader)

    feed(epoch, task.target)


if __name__ == "__main__":
    main()
