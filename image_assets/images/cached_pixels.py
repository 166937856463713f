"""Images as caches store them, and back to pixels (runs in each executor and on each rank)."""

from collections.abc import Iterable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits, is_reduced
from image_assets.images.pixels import DEFAULT, Crop, Reading, to_pixels
from resources.delta.arrow_rows import Row
from resources.delta.row_groups import Color, Content

JPEG_QUALITY, JPEG_SUBSAMPLING = 90, "444"  # docs/caches.md compares other settings
CACHE_CODE = "3"  # raise it if the same images and settings would give other caches


def to_cached(image: bytes, side_pixels: int, content: Content, color: Color, reading: Reading = DEFAULT) -> bytes:
    """An image file as a cache stores it; "original" is the file itself, or its lossless gray PNG."""
    if content == "original":
        return image
    pixels = to_pixels(image, side_pixels, color, reading=reading)
    if color == "gray":
        pixels = np.ascontiguousarray(pixels[:, :, :1])
    if content == "pixels":
        return pixels.tobytes()
    return simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, {"rgb": "RGB", "gray": "GRAY"}[color], JPEG_SUBSAMPLING)


def to_cached_rows(
    images: Iterable[Row], side_pixels: int, content: Content, color: Color, reading: Reading = DEFAULT
) -> Iterator[Row]:
    """The rows, with their images as a cache stores them."""
    limits = Limits()

    def cached(image: bytes) -> bytes:
        return to_cached(image, side_pixels, content, color, reading)

    with GuardedProcess(cached, memory_bytes=limits.memory_bytes) as guarded:
        for image in images:
            data = image["content"]
            made = guarded.run(data, cpu_seconds=limits.seconds) if is_reduced(data, reading) else cached(data)
            if isinstance(made, ItemFailure):
                raise ValueError(f"the image {image.get('image_id')} cannot be decoded: {made.message}")
            yield {**image, "content": made}


def to_cached_pixels(
    cached: bytes,
    side_pixels: int,
    content: Content,
    color: Color,
    crop: Crop | None = None,
    reading: Reading = DEFAULT,
) -> np.ndarray:
    """The pixels (side, side, 3) uint8 of a cached image, or of a crop of it; gray in all three channels."""
    if content != "pixels":
        return to_pixels(cached, side_pixels, color, crop, reading)
    pixels = np.frombuffer(cached, np.uint8).reshape(side_pixels, side_pixels, -1)
    if crop is not None:
        part = crop.resized(Image.fromarray(pixels.squeeze(axis=2) if color == "gray" else pixels), side_pixels)
        pixels = np.asarray(part).reshape(pixels.shape)
    return np.broadcast_to(pixels, (side_pixels, side_pixels, 3))
