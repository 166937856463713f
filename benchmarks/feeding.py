"""Feeds batches of images as training consumes them: two epochs are timed, the pixels of a third are checked.

Every loader uses this, including those in separate environments.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

from benchmarks.task import answer

SIDE_PIXELS = 224
PIXELS_SHAPE = (SIDE_PIXELS, SIDE_PIXELS, 3)
BATCH_IMAGES = 32
WORKERS = 2
EPOCHS = 2
SEEN_EVERY = 20  # the pixels of every 20th photograph are saved and checked

# Pixels uint8 (n, 224, 224, 3), or the files' bytes if nothing is decoded; and the photographs' numbers (n,).
Batch = tuple[np.ndarray | list[bytes], np.ndarray]


def to_pillow_pixels(file: Path | BinaryIO) -> np.ndarray:
    """The pixels of a photograph, decoded and resized with Pillow: uint8 (224, 224, 3)."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR))


def feed(epoch: Callable[[], Iterable[Batch]], target: str) -> None:
    """Consume all batches of the timed epochs, report the times, and save some pixels of one more epoch."""
    epochs = [timed_epoch(epoch) for _ in range(EPOCHS)]
    answer({"work_seconds": epochs[0]["seconds"], "epochs": epochs})
    keep(epoch(), Path(target))


def timed_epoch(epoch: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Wall seconds, CPU seconds and number of images of one epoch."""
    computed, started = cpu_seconds(), time.perf_counter()
    images = sum(len(numbers) for _, numbers in epoch())
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - computed, "images": images}


def cpu_seconds() -> float:
    """CPU time of this process and all its descendants so far."""
    program = psutil.Process()
    times = [process.cpu_times() for process in (program, *program.children(recursive=True))]
    return sum(of.user + of.system + of.children_user + of.children_system for of in times)


def keep(batches: Iterable[Batch], target: Path) -> None:
    """Save the numbers of all photographs in the batches, and the pixels of some."""
    numbers, seen, pixels = [], [], []
    for images, of in batches:
        numbers.append(np.array(of))
        for image, number in zip(images, of, strict=True):
            if number % SEEN_EVERY == 0 and isinstance(image, np.ndarray):
                seen.append(number)
                pixels.append(image.copy())
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "fed.npz", numbers=np.concatenate(numbers), seen=np.array(seen), pixels=np.array(pixels))
