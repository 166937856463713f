"""Grayscale PNGs of images (runs in executors)."""

import struct
from collections.abc import Iterable, Iterator

import numpy as np

from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits, is_reduced, scaled_content
from image_assets.images.pixels import DEFAULT, Reading, decoded, upright
from resources.delta.arrow_rows import Row

PATH_ONLY_PIXELS = 2048  # images above the content limit are downscaled to fit in a square of this side


def to_gray_rows(images: Iterable[Row], limits: Limits) -> Iterator[Row]:
    """Replaces each image's content with a grayscale PNG; null if a large image's file is gone."""
    reading = limits.reading

    def large_to_gray(image: Row) -> bytes | None:
        content = image["content"]
        if content is None:
            content = scaled_content(image["path"], PATH_ONLY_PIXELS, reading=reading)
        return None if content is None else to_grayscale(content, reading)

    with GuardedProcess(large_to_gray, memory_bytes=limits.memory_bytes) as guarded:
        for image in images:
            content = image["content"]
            if content is not None and not is_reduced(content, reading):
                yield {**image, "content": to_grayscale(content, reading)}
            else:
                gray = guarded.run(image, cpu_seconds=limits.seconds_for(image["length"]))
                yield {**image, "content": None if isinstance(gray, ItemFailure) else gray}


def to_grayscale(content: bytes, reading: Reading = DEFAULT) -> bytes:
    """The upright image as lossless grayscale PNG of the same size, or smaller above the pixel limit."""
    header, image, _ = decoded(content, "L", reading=reading)
    return _to_png(np.asarray(upright(image, header)))


def _to_png(gray: np.ndarray) -> bytes:
    """Lossless PNG of gray pixels: about 15 times faster than Pillow, and a few percent larger."""
    from isal import isal_zlib

    height, width = gray.shape
    # Each row starts with its filter: 2 ("up") subtracts the row above.
    rows = np.full((height, width + 1), 2, np.uint8)
    rows[0, 1:] = gray[0]
    np.subtract(gray[1:], gray[:-1], out=rows[1:, 1:])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", isal_zlib.compress(rows.data, 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", isal_zlib.crc32(name + data))
        for name, data in chunks
    )
