"""What every contestant is told and answers (standard library only: each runs in an environment of its own)."""

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
    """What to do (such as ingest, featured, grayscale), from where, to where, and with which function for an image."""

    benchmark: str
    source: str
    target: str
    kernel: str


def read_task() -> Task:
    """The task on the command line."""
    return Task(*sys.argv[1:5])


def seconds_since_start() -> float:
    """How long ago the harness started this program."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


@contextmanager
def timed() -> Iterator[dict[str, object]]:
    """Time the work inside, without what comes before and after it; what is put into the dict is told too."""
    more: dict[str, object] = {}
    started = time.perf_counter()
    yield more
    answer({"work_seconds": time.perf_counter() - started, **more})


def answer(said: dict[str, object]) -> None:
    """Tell the harness."""
    Path(os.environ["BENCHMARK_ANSWER"]).write_text(json.dumps(said))


def to_sha256(content: bytes) -> str:
    """What tells an image's bytes from others."""
    return hashlib.sha256(content).hexdigest()


def to_pillow_gray(content: bytes) -> bytes:
    """Gray PNG as everybody writes it."""
    from PIL import Image

    gray = BytesIO()
    Image.open(BytesIO(content)).convert("L").save(gray, "PNG")
    return gray.getvalue()


def to_gray(kernel: str) -> Callable[[bytes], bytes]:
    """The function that turns an image gray: Pillow's, or this project's own."""
    if kernel == "pillow":
        return to_pillow_gray
    from image_assets.images.pixels import to_grayscale

    return to_grayscale
