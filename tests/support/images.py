"""Small images made in code: the same number, the same bytes."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A pattern of color that looks like no other number's."""
    patches = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def png(number: int, size: tuple[int, int] = (48, 32)) -> bytes:
    """The picture, lossless."""
    content = BytesIO()
    picture(number, size).save(content, "PNG")
    return content.getvalue()


def jpeg(number: int, quality: int = 90) -> bytes:
    """The picture as JPEG; another quality is a near duplicate."""
    content = BytesIO()
    picture(number).save(content, "JPEG", quality=quality)
    return content.getvalue()


def colored_jpeg(label_index: int, seed: int) -> bytes:
    """A noisy JPEG, red for label 0 and blue for label 1; the seed makes it one of its own."""
    noise = np.random.default_rng((label_index, seed)).integers(-40, 40, (60, 80, 3))
    color = np.array([(200, 60, 50), (50, 70, 190)][label_index])
    content = BytesIO()
    Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(content, "JPEG")
    return content.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    """The file below the folder, written."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
