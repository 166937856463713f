"""Images above the content limit, whose rows have no content (runs in executors)."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from image_assets.images.formats import SIGNATURE_BYTES, UnreadableImage, format_of
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.pixels import DEFAULT, SMALLER_SIDE_PIXELS, Reading, read_header, to_smaller
from resources.delta.arrow_rows import Row
from resources.files.file_system import open_file

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SCALING_MEMORY_BYTES = 1024**3
FORMATS_OF_LIBVIPS = ("PNG", "WEBP", "GIF", "TIFF")  # large JPEGs have a decoder of their own
# The time limit grows with the file: reading and decoding are expected to be at least this fast.
BYTES_PER_SECOND = 16 * 1024**2

File = tuple[str, int]  # its path and length


@dataclass(frozen=True)
class Limits:
    """Limits for a file: its size in tables, its size at all, the CPU time and memory to decode it, and how it is read.

    `link_roots` are the real paths of the folders that links may lead to.
    """

    content_bytes: int = 512 * 1024**2
    size_bytes: int = 16 * 1024**3
    seconds: float = 10
    memory_bytes: int = 1024**3
    link_roots: tuple[str, ...] = ()
    reading: Reading = DEFAULT

    def seconds_for(self, length: int) -> float:
        """The CPU time to decode a file of this length."""
        return self.seconds + length / BYTES_PER_SECOND


def scaled_content(
    path: str,
    side_pixels: int,
    *,
    length: int | None = None,
    reading: Reading = DEFAULT,
    link_roots: Sequence[str] = (),
) -> bytes | None:
    """The file's image as PNG, downscaled to fit in a square.

    None if the file cannot be read any more, or does not have the given length. Links to the `link_roots` are followed.
    """
    try:
        with open_file(path, link_roots) as file:
            changed = length is not None and file.seek(0, os.SEEK_END) != length
            return None if changed else to_smaller(file, side_pixels, reading)
    except (OSError, UnreadableImage):  # deleted or replaced since it was listed
        return None


def is_reduced(content: bytes, reading: Reading = DEFAULT) -> bool:
    """Whether an image has so many pixels that libvips downscales it.

    A process in which libvips has started its threads cannot start guarded processes that use it: they would hang.
    Such images are therefore decoded in guarded processes themselves.
    """
    if format_of(content[:SIGNATURE_BYTES]) not in FORMATS_OF_LIBVIPS:
        return False
    try:
        header = read_header(BytesIO(content))
    except UnreadableImage:
        return False
    return header.width * header.height > reading.max_pixels


def with_scaled_content(images: "DataFrame", reading: Reading) -> "DataFrame":
    """The images without `length`; images without content get a downscaled copy of their file.

    Every model version, old ones included, can then score them like other images, wherever the files are.
    """
    from pyspark.sql import functions as F

    def small(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        return scaled_contents(batches, reading)

    path_only = [F.when(F.col("content").isNull(), F.col(name)) for name in ("path", "length")]
    pandas_udf: Any = F.pandas_udf  # Any: its stubs lack functions on iterators of tuples
    content = F.coalesce("content", pandas_udf(small, "binary")(*path_only))
    return images.withColumn("content", content).drop("length")


def with_scaled_contents(images: Iterable[Row], reading: Reading) -> Iterator[Row]:
    """The same for rows."""
    with scaling_process(reading) as guarded:
        for image in images:
            content = image["content"]
            if content is None:
                content = content_of(image["path"], image["length"], guarded)
            yield {name: value for name, value in image.items() if name != "length"} | {"content": content}


def scaled_contents(batches: Iterator[tuple[pd.Series, pd.Series]], reading: Reading) -> Iterator[pd.Series]:
    """Downscaled contents by path and length; None without a path, or if the file has changed."""
    with scaling_process(reading) as guarded:
        for paths, lengths in batches:
            contents = [content_of(*file, guarded) for file in zip(paths, lengths, strict=True)]
            yield pd.Series(contents, dtype=object)


def scaling_process(reading: Reading) -> GuardedProcess[File, bytes | None]:
    """A process that downscales files."""

    def small(file: File) -> bytes | None:
        path, length = file
        return scaled_content(path, SMALLER_SIDE_PIXELS, length=length, reading=reading)

    return GuardedProcess(small, memory_bytes=SCALING_MEMORY_BYTES)


def content_of(path: str | None, length: float, guarded: GuardedProcess[File, bytes | None]) -> bytes | None:
    """The downscaled content of one file; None without a path, or if the file has changed."""
    if path is None:
        return None
    seconds = Limits().seconds_for(int(length))
    found = guarded.run((path, int(length)), cpu_seconds=seconds)
    return None if isinstance(found, ItemFailure) else found
