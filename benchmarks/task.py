"""A contestant's task and report (standard library only, because contestants run in separate environments)."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """What to do (such as `ingest`), the source and target, and the kernel: the function or setting to use."""

    benchmark: str
    source: str
    target: str
    kernel: str


def read_task() -> Task:
    """The task on the command line."""
    return Task(*sys.argv[1:5])


def seconds_since_start() -> float:
    """Seconds since the harness started this program."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


@contextmanager
def timed() -> Iterator[dict[str, object]]:
    """Time the block and report it to the harness, together with the figures put into the yielded dict."""
    figures: dict[str, object] = {}
    started = time.perf_counter()
    yield figures
    answer({"work_seconds": time.perf_counter() - started, **figures})


def answer(figures: dict[str, object]) -> None:
    """Report figures to the harness."""
    Path(os.environ["BENCHMARK_ANSWER"]).write_text(json.dumps(figures))


def to_sha256(content: bytes) -> str:
    """The SHA-256 of an image's bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def to_pillow_gray(content: bytes) -> bytes:
    """The image as a grayscale PNG, converted with Pillow in the usual way."""
    from PIL import Image

    gray = BytesIO()
    Image.open(BytesIO(content)).convert("L").save(gray, "PNG")
    return gray.getvalue()


def to_gray(kernel: str) -> Callable[[bytes], bytes]:
    """The function that converts an image to grayscale: with Pillow, or this project's own."""
    if kernel == "pillow":
        return to_pillow_gray
    from image_assets.images.grayscale import to_grayscale

    return to_grayscale
