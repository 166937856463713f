"""Small pictures of images, made when somebody looks and kept in a folder of bounded size."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Literal, cast
from uuid import uuid4

import pyarrow.compute as pc
from PIL import Image, ImageDraw

from image_assets.images.pixels import UnreadableImage, to_smaller, to_thumbnail
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.parquet_files import open_parquet
from resources.delta.thin_tables import ThinTables
from resources.files.file_system import opened

Size = Literal["thumbnail", "view"]
SIDE_PIXELS: dict[Size, int] = {"thumbnail": 256, "view": 1280}
LARGE_BYTES = 64 * 1024**2  # files above are scaled while they are decoded
KEPT_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Content:
    """An image that could be read: its id, and where its bytes are, or were."""

    image_id: str
    path: str
    length: int


class NoPicture(LookupError):
    """An image of which neither its file nor the tables hold the bytes any more."""


class KeptFolder:
    """Files by name, the oldest of which go when all together are too large."""

    def __init__(self, folder: Path, most_bytes: int = KEPT_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._unseen_bytes = most_bytes  # written since somebody looked: at the first chance

    def get(self, name: str) -> bytes | None:
        """The file's bytes; None where it is not there."""
        try:
            return (self._folder / name[:2] / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Keep a file: all of it, or nothing when this is cut off."""
        file = self._folder / name[:2] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{uuid4().hex}")
        unfinished.write_bytes(content)
        unfinished.replace(file)
        self._unseen_bytes += len(content)
        if self._unseen_bytes > self._most_bytes / 16:
            self._unseen_bytes = 0
            self._make_room()

    def _make_room(self) -> None:
        files = [(file, file.stat()) for file in self._folder.glob("*/*")]
        total = sum(status.st_size for _, status in files)
        for file, status in sorted(files, key=lambda found: found[1].st_mtime):
            if total <= self._most_bytes:
                return
            file.unlink(missing_ok=True)
            total -= status.st_size


class Thumbnails:
    """Pictures of the images of one home, as JPEG, whatever format they have: nothing is served as it came."""

    def __init__(self, thin_tables: ThinTables, kept: KeptFolder) -> None:
        self._thin_tables = thin_tables
        self._kept = kept
        self._makers = ThreadPoolExecutor(os.cpu_count(), "thumbnail")  # each may hold a decoded photograph

    def picture(self, content: Content, size: Size) -> bytes:
        """A JPEG of the upright image that fits in a square; NoPicture where its bytes are gone."""
        name = f"{content.image_id}-{SIDE_PIXELS[size]}.jpg"
        return self._kept.get(name) or self._makers.submit(self._made, content, SIDE_PIXELS[size], name).result()

    def _made(self, content: Content, side_pixels: int, name: str) -> bytes:
        made = first_picture(
            side_pixels,
            lambda: from_file(content, side_pixels),
            lambda: from_table(self._thin_tables, content),
        )
        if made is None:
            raise NoPicture(f"neither the file {content.path} nor featured_images hold the image any more")
        with suppress(OSError):  # a full disk costs time, and no picture
            self._kept.put(name, made)
        return made


@cache
def no_picture() -> bytes:
    """What stands for an image whose bytes are gone, as PNG."""
    empty = Image.new("L", (256, 256), 128)
    ImageDraw.Draw(empty).text((128, 128), "no picture", 255, anchor="mm", font_size=24)
    picture = BytesIO()
    empty.save(picture, "PNG", optimize=True)
    return picture.getvalue()


def first_picture(side_pixels: int, *sources: Callable[[], bytes | None]) -> bytes | None:
    """A small picture of the first source that has one."""
    for source in sources:
        try:
            if found := source():
                return to_thumbnail(found, side_pixels)
        except UnreadableImage:
            continue
    return None


def from_file(content: Content, side_pixels: int) -> bytes | None:
    """The image as its file has it, a large one scaled; None where the file is gone or holds another image."""
    try:
        with opened(content.path) as file:
            if file_digest(cast("BufferedReader", file), "sha256").hexdigest() != content.image_id:
                return None
            file.seek(0)
            return to_smaller(file, side_pixels) if content.length > LARGE_BYTES else file.read()
    except OSError:
        return None


def from_table(thin_tables: ThinTables, content: Content) -> bytes | None:
    """The image as featured_images keeps it; None where it has the path only."""
    place = thin_tables.file_with(FEATURED_IMAGES, pc.field("image_id") == content.image_id)
    if place is None:
        return None
    with open_parquet(place) as parquet:
        for group in range(parquet.num_row_groups):
            ids = parquet.read_row_group(group, ["image_id"], use_threads=False)["image_id"].to_pylist()
            if content.image_id in ids:
                rows = parquet.read_row_group(group, ["content"], use_threads=False)["content"]
                return rows[ids.index(content.image_id)].as_py()
    return None
