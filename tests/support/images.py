"""Small images created in code. The same number gives the same bytes."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Return a color pattern that differs from that of any other number."""
    patches = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def png(number: int, size: tuple[int, int] = (48, 32)) -> bytes:
    """Return the picture as PNG."""
    content = BytesIO()
    picture(number, size).save(content, "PNG")
    return content.getvalue()


def png_of_many_pixels() -> bytes:
    """Return a transparent PNG of few bytes that takes 400 MB to decode.

    A decoder may use what is free in the heap of the test process, whatever its memory limit: this is more.
    """
    content = BytesIO()
    Image.new("RGBA", (7000, 7000)).save(content, "PNG")
    return content.getvalue()


def jpeg(number: int, quality: int = 90) -> bytes:
    """Return the picture as JPEG; another quality gives a near duplicate."""
    content = BytesIO()
    picture(number).save(content, "JPEG", quality=quality)
    return content.getvalue()


def noise_jpeg(seed: int, size: tuple[int, int] = (150, 100)) -> bytes:
    """Return a JPEG of random colored squares, five pixels wide."""
    content = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size).save(content, "JPEG")
    return content.getvalue()


def opened(picture: bytes) -> Image.Image:
    """Return the picture as Pillow opens it."""
    return Image.open(BytesIO(picture))


def colored_jpeg(label_index: int, seed: int) -> bytes:
    """Return a noisy JPEG, red for label 0 and blue for label 1, unique for each seed."""
    noise = np.random.default_rng((label_index, seed)).integers(-40, 40, (60, 80, 3))
    color = np.array([(200, 60, 50), (50, 70, 190)][label_index])
    content = BytesIO()
    Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(content, "JPEG")
    return content.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write a file below the folder and return its path."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
