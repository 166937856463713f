"""Image files on disk: their names as table paths, listing and reading them (runs in each executor)."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

SCHEME = "file:"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFile:
    """One file as a listing finds it; `regular` is false for links, pipes and devices."""

    path: str
    modification_time: datetime
    length: int
    regular: bool


class FileChanged(OSError):
    """The file is another one than was listed: it is still being written, or was replaced."""


def to_path(name: bytes) -> str:
    """A file's name as the tables hold it: readable, and the exact bytes again by `to_name`.

    Only `%`, line breaks and bytes that are no UTF-8 are written as `%XX`; all else stays as it is.
    """
    text = os.fsdecode(name.replace(b"%", b"%25").replace(b"\n", b"%0A").replace(b"\r", b"%0D"))
    return SCHEME + "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def to_name(path: str) -> bytes:
    """The name on disk of a path of the tables."""
    return unquote_to_bytes(path.removeprefix(SCHEME))


def list_files(root: Path) -> Iterator[ImageFile]:
    """Every image file below `root`, by suffix; links are listed, never followed."""
    folders = [os.fsencode(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif os.fsdecode(entry.name).lower().endswith(SUFFIXES):
                    yield to_image_file(entry.path, entry.stat(follow_symlinks=False))


def to_image_file(name: bytes, status: os.stat_result) -> ImageFile:
    """What a listing says of one file; times in whole microseconds, as tables keep them."""
    return ImageFile(
        path=to_path(name),
        modification_time=datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC),
        length=status.st_size,
        regular=stat.S_ISREG(status.st_mode),
    )


def fingerprint(files: Iterable[ImageFile]) -> str:
    """The files' state in one short string: it changes when any file comes, goes or changes."""
    lines = sorted(f"{file.path}\t{file.modification_time.timestamp()}\t{file.length}" for file in files)
    return sha256("\n".join(lines).encode()).hexdigest()[:32]


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file, to be read; OSError when it is gone, no regular file, or anything on the way to it is a link.

    Each folder is opened below the one before it: a folder that is put in place of another by a link, also after
    the listing, leads nowhere.
    """
    *folders, name = to_name(path).split(b"/")[1:]
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for below in folders:
            outer, folder = folder, os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(outer)
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        yield file


def read_content(path: str, *, length: int) -> bytes:
    """The file's bytes; FileChanged when there are more or fewer than listed, OSError as `opened` raises it."""
    with opened(path) as file:
        before = os.fstat(file.fileno())
        content = file.read()
        if len(content) != length or os.fstat(file.fileno()).st_mtime_ns != before.st_mtime_ns:
            raise FileChanged(f"{path} had {length} bytes when listed and {len(content)} when read")
    return content
