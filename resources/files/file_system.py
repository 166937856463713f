"""Image files on disk: their names as table paths, listing and reading them (runs in each executor)."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from resources.files import object_storage
from resources.files.image_file import ImageFile, escaped

SCHEME = "file:"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class FileChanged(OSError):
    """The file is another one than was listed: it is still being written, or was replaced."""


def to_path(name: bytes) -> str:
    """A file's name as the tables hold it: readable, and the exact bytes again by `to_name`.

    Only `%`, line breaks and bytes that are no UTF-8 are written as `%XX`; all else stays as it is.
    """
    return SCHEME + escaped(os.fsdecode(name))


def to_name(path: str) -> bytes:
    """The name on disk of a path of the tables."""
    return unquote_to_bytes(path.removeprefix(SCHEME))


def list_names(root: Path, wanted: Callable[[str], bool], excluded: Callable[[str], bool]) -> dict[str, bool]:
    """The paths of the wanted files below `root`, and for each whether it is a regular file; nothing is opened.

    Links are listed, never followed: those that are called like an image, and those to folders.
    `passed_over` leaves out a folder with all that is in it.
    """
    found: dict[str, bool] = {}
    folders = [(str(root), to_path(os.fsencode(root)), "")]
    while folders:
        folder, path, relative_path = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            if not relative_path:
                raise
            continue  # it went while its neighbours were listed
        for entry in entries:
            name = f"{relative_path}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if not excluded(name):
                    folders.append((entry.path, f"{path}/{escaped(entry.name)}", f"{name}/"))
            elif wanted(name) or (not excluded(name) and leads_to_folder(entry)):
                found[f"{path}/{escaped(entry.name)}"] = entry.is_file(follow_symlinks=False)
    return found


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a link to a folder; what is in there is never looked at."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return False


def stat_file(path: str) -> ImageFile | None:
    """The file as it is now; None when it is gone. Times are in whole microseconds, as tables keep them."""
    try:
        status = os.lstat(to_name(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ImageFile(
        path=path,
        modification_time=datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC),
        length=status.st_size,
        regular=stat.S_ISREG(status.st_mode),
    )


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """The file, to be read; OSError when it is gone, no regular file, or anything on the way to it is a link.

    Each folder is opened below the one before it: a folder that is put in place of another by a link, also after
    the listing, leads nowhere.
    """
    if object_storage.is_url(path):
        with object_storage.open_file(path) as file:
            yield file
        return
    *folders, name = to_name(path).split(b"/")[1:]
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for relative_path in folders:
            outer, folder = folder, os.open(relative_path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
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
    with open_file(path) as file:
        before = modification_stamp(file)
        content = file.read()
        if len(content) != length or modification_stamp(file) != before:
            raise FileChanged(f"{path} had {length} bytes when listed and {len(content)} when read")
    return content


def modification_stamp(file: BinaryIO) -> int | None:
    """What changes when somebody writes to an opened file; None for an object, which is replaced as a whole."""
    try:
        return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None
