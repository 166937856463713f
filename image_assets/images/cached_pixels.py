"""What a cache holds of an image, and the pixels that it stands for (runs in each executor and on each rank)."""

from collections.abc import Iterable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from image_assets.images.pixels import Crop, to_pixels
from resources.delta.arrow_rows import Row
from resources.delta.row_groups import Color, Content

SIDE_PIXELS = 224
JPEG_QUALITY, JPEG_SUBSAMPLING = 90, "444"  # docs/caches.md has what others come to
CACHE_CODE = "1"  # raise it when the same images and settings would give other caches


def to_cached(image: bytes, content: Content, color: Color) -> bytes:
    """An image file as a cache holds it; "original" is the file itself, or its lossless gray PNG."""
    if content == "original":
        return image
    pixels = to_pixels(image, SIDE_PIXELS, color)
    if color == "gray":
        pixels = np.ascontiguousarray(pixels[:, :, :1])
    if content == "pixels":
        return pixels.tobytes()
    return simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, {"rgb": "RGB", "gray": "GRAY"}[color], JPEG_SUBSAMPLING)


def to_cached_rows(images: Iterable[Row], content: Content, color: Color) -> Iterator[Row]:
    """The rows with what a cache holds of their images."""
    for image in images:
        yield {**image, "content": to_cached(image["content"], content, color)}


def to_cached_pixels(cached: bytes, content: Content, color: Color, crop: Crop | None = None) -> np.ndarray:
    """The pixels (224, 224, 3) of what a cache holds, or of a part of it; gray three times."""
    if content != "pixels":
        return to_pixels(cached, SIDE_PIXELS, color, crop)
    pixels = np.frombuffer(cached, np.uint8).reshape(SIDE_PIXELS, SIDE_PIXELS, -1)
    if crop is not None:
        part = crop.resized(Image.fromarray(pixels.squeeze(axis=2) if color == "gray" else pixels), SIDE_PIXELS)
        pixels = np.asarray(part).reshape(pixels.shape)
    return np.broadcast_to(pixels, (SIDE_PIXELS, SIDE_PIXELS, 3))
