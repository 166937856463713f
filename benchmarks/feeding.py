"""Batches of images as a training takes them: two epochs are timed, a third is looked at.

Every loader feeds so, also those in environments of their own.
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
SEEN_EVERY = 20  # the pixels of each so-manieth photograph are kept to be looked at

# Pixels (n, 224, 224, 3) uint8, or the files' bytes where nothing is decoded; and the photographs' numbers (n,).
Batch = tuple[np.ndarray | list[bytes], np.ndarray]


def to_pillow_pixels(file: Path | BinaryIO) -> np.ndarray:
    """The pixels of a photograph, decoded and resized by Pillow."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR))


def feed(epoch: Callable[[], Iterable[Batch]], target: str) -> None:
    """Take in every batch of the epochs that are timed, tell how long each took, and keep some pixels of another."""
    epochs = [timed_epoch(epoch) for _ in range(EPOCHS)]
    answer({"work_seconds": epochs[0]["seconds"], "epochs": epochs})
    keep(epoch(), Path(target))


def timed_epoch(epoch: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Seconds, processor seconds and images of one epoch."""
    computed, started = cpu_seconds(), time.perf_counter()
    images = sum(len(numbers) for _, numbers in epoch())
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - computed, "images": images}


def cpu_seconds() -> float:
    """What this process and all below it have computed so far."""
    program = psutil.Process()
    times = [process.cpu_times() for process in (program, *program.children(recursive=True))]
    return sum(of.user + of.system + of.children_user + of.children_system for of in times)


def keep(batches: Iterable[Batch], target: Path) -> None:
    """Write down which photographs came, and the pixels of some of them."""
    numbers, seen, pixels = [], [], []
    for images, of in batches:
        numbers.append(np.array(of))
        for image, number in zip(images, of, strict=True):
            if number % SEEN_EVERY == 0 and isinstance(image, np.ndarray):
                seen.append(number)
                pixels.append(image.copy())
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "fed.npz", numbers=np.concatenate(numbers), seen=np.array(seen), pixels=np.array(pixels))
