"""Grayscale copies of images with and without content, large ones included."""

import os
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from image_assets.images.grayscale import to_gray_rows
from image_assets.images.large_images import Limits
from image_assets.images.pixels import Reading
from resources.delta.arrow_rows import Row
from resources.files.file_system import to_path
from tests.support.images import jpeg, png, put


def gray_contents(rows: list[Row], limits: Limits) -> list[bytes | None]:
    return [row["content"] for row in to_gray_rows(rows, limits)]


def test_a_large_image_does_not_hang_those_that_are_read_from_their_files(tmp_path: Path) -> None:
    path = to_path(os.fsencode(put(tmp_path, "a.jpg", jpeg(1))))
    rows = [
        {"path": "file:/large.png", "content": png(1, (60, 40)), "length": 5},
        {"path": path, "content": None, "length": len(jpeg(1))},
        {"path": "file:/gone.jpg", "content": None, "length": 5},
    ]
    limits = Limits(seconds=2, reading=Reading(max_pixels=60 * 40 - 1))
    # In a process of its own: other tests decode large images in this one, which then cannot start processes that do.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        gray = process.submit(gray_contents, rows, limits).result()
    sizes = [Image.open(BytesIO(content)).size if content else None for content in gray]
    assert sizes == [(60, 40), (48, 32), None]
