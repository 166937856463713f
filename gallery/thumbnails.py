"""Thumbnails: small JPEGs of images, made on demand and cached in a folder of limited size."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest
from io import BufferedReader, BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Literal, cast

import pyarrow.compute as pc
from PIL import Image, ImageDraw

from image_assets.images.contact_sheets import to_thumbnail
from image_assets.images.formats import UnreadableImage
from image_assets.images.pixels import to_smaller
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import open_parquet
from resources.files.file_system import open_file
from resources.files.replacing import replace_bytes

Size = Literal["thumbnail", "view"]
SIDE_PIXELS: dict[Size, int] = {"thumbnail": 256, "view": 1280}
LARGE_BYTES = 64 * 1024**2  # larger files are scaled while they are decoded, which needs less memory
CACHE_BYTES = 512 * 1024**2
LINE_CHARACTERS, LINE_PIXELS = 38, 32  # of a message in a picture


@dataclass(frozen=True)
class Content:
    """Identifies the bytes of an image that could be read, and the file that had them when it was ingested."""

    image_id: str
    path: str
    length: int


class PictureUnavailable(LookupError):
    """The bytes of an image are neither in its file nor in the tables any more."""


class FolderCache:
    """Files by name in a folder; the oldest are deleted when all of them together become too large."""

    def __init__(self, folder: Path, max_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._unchecked_bytes = max_bytes  # written since the last check of the size; the first write checks it

    def get(self, name: str) -> bytes | None:
        """The content of a file; None if it is not in the cache."""
        try:
            return (self._folder / name[:2] / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Store a file. If this is interrupted, nothing is stored."""
        file = self._folder / name[:2] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, content)
        self._unchecked_bytes += len(content)
        # Listing the folder is slow, so the size is checked only now and then.
        if self._unchecked_bytes > self._max_bytes / 16:
            self._unchecked_bytes = 0
            self._evict()

    def _evict(self) -> None:
        files = [(file, file.stat()) for file in self._folder.glob("*/*")]
        total = sum(status.st_size for _, status in files)
        for file, status in sorted(files, key=lambda entry: entry[1].st_mtime):
            if total <= self._max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= status.st_size


class Thumbnails:
    """The thumbnails of a home's images. They are always JPEGs made here; original files are never served."""

    def __init__(self, delta_tables: DeltaTables, stored: FolderCache) -> None:
        self._delta_tables = delta_tables
        self._stored = stored
        self._pool = ThreadPoolExecutor(os.cpu_count(), "thumbnail")  # limits how many decoded images are in memory

    def picture(self, content: Content, size: Size) -> bytes:
        """A JPEG of the image, upright, that fits in a square of `SIDE_PIXELS`.

        Raises:
            PictureUnavailable: The bytes of the image are gone.
        """
        name = f"{content.image_id}-{SIDE_PIXELS[size]}.jpg"
        return self._stored.get(name) or self._pool.submit(self._make, content, SIDE_PIXELS[size], name).result()

    def _make(self, content: Content, side_pixels: int, name: str) -> bytes:
        picture = first_thumbnail(
            side_pixels,
            lambda: read_from_file(content, side_pixels),
            lambda: read_from_table(self._delta_tables, content),
        )
        if picture is None:
            raise PictureUnavailable(f"neither the file {content.path} nor featured_images has the image any more")
        with suppress(OSError):  # with a full disk, thumbnails are made again each time
            self._stored.put(name, picture)
        return picture


@cache
def placeholder() -> bytes:
    """The PNG that is shown for an image whose bytes are gone."""
    return message_picture("no preview")


def message_picture(message: str) -> bytes:
    """A PNG that shows a message in place of a picture."""
    text = "\n".join(wrap(message, LINE_CHARACTERS))
    height = max(256, LINE_PIXELS * (text.count("\n") + 3))
    image = Image.new("L", (2 * 256 if len(message) > LINE_CHARACTERS // 2 else 256, height), 128)
    draw = ImageDraw.Draw(image)
    draw.text((image.width / 2, height / 2), text, 255, anchor="mm", align="center", font_size=LINE_PIXELS - 8)
    content = BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def first_thumbnail(side_pixels: int, *sources: Callable[[], bytes | None]) -> bytes | None:
    """A thumbnail from the first source that has a readable image; None if none of them has."""
    for source in sources:
        try:
            if content := source():
                return to_thumbnail(content, side_pixels)
        except UnreadableImage:
            continue
    return None


def read_from_file(content: Content, side_pixels: int) -> bytes | None:
    """The bytes of the image's file, scaled down if it is large; None if the file is gone or has other content."""
    try:
        with open_file(content.path) as file:
            if file_digest(cast("BufferedReader", file), "sha256").hexdigest() != content.image_id:
                return None
            file.seek(0)
            return to_smaller(file, side_pixels) if content.length > LARGE_BYTES else file.read()
    except OSError:
        return None


def read_from_table(delta_tables: DeltaTables, content: Content) -> bytes | None:
    """The image's bytes in featured_images; None if the table does not store them."""
    address = delta_tables.file_with(FEATURED_IMAGES, pc.field("image_id") == content.image_id)
    if address is None:
        return None
    with open_parquet(address) as parquet:
        for group in range(parquet.num_row_groups):
            # Only the row group with the image is read: the others hold the bytes of many other images.
            ids = parquet.read_row_group(group, ["image_id"], use_threads=False)["image_id"].to_pylist()
            if content.image_id in ids:
                rows = parquet.read_row_group(group, ["content"], use_threads=False)["content"]
                return rows[ids.index(content.image_id)].as_py()
    return None
