"""Files on other file systems, by fsspec: the names of images as table paths, listing and reading them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import pyarrow.fs as pafs
from fsspec.core import url_to_fs

from resources.files.image_file import ImageFile, escaped

LOCAL = "file:"
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")  # S3, Azure, SFTP, Google, memory


def is_url(name: str) -> bool:
    """Whether a folder or path is one that fsspec opens, and no local one."""
    return "://" in name and not name.startswith(LOCAL)


def uncached_file_system(url: str) -> tuple[Any, str]:  # Any: fsspec's types leave out what depends on arguments
    """The file system of a URL or folder, which remembers no listing, and the path there."""
    system, path = url_to_fs(url, use_listings_cache=False)
    return system, str(path)


def arrow_system(url: str) -> tuple[pafs.FileSystem, str]:
    """The same in pyarrow's hands."""
    system, path = uncached_file_system(url)
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def to_path(url: str) -> str:
    """A URL as the tables hold it: `%` and line breaks as `%XX`, as in local paths."""
    return escaped(url.rstrip("/"))


def list_objects(url: str, wanted: Callable[[str], bool], excluded: Callable[[str], bool]) -> dict[str, ImageFile]:
    """The wanted objects below the URL by path; `passed_over` leaves out a folder with all that is in it."""
    system, root = url_to_fs(url)
    system.invalidate_cache()
    found = {}
    for name, info in system.find(root, detail=True).items():
        relative_path = name.removeprefix(root.rstrip("/")).lstrip("/")
        folders = [relative_path[:index] for index, letter in enumerate(relative_path) if letter == "/"]
        if wanted(relative_path) and not any(map(excluded, folders)):
            path = f"{to_path(url)}/{escaped(relative_path)}"
            found[path] = ImageFile(path, to_time(info), int(info["size"]), regular=True)
    return found


def stat_file(path: str) -> ImageFile | None:
    """The object as it is now; None when there is none."""
    system, name = uncached_file_system(unquote(path))
    try:
        info = system.info(name)
    except FileNotFoundError:
        return None
    return ImageFile(path, to_time(info), int(info["size"]), regular=True) if info["type"] == "file" else None


def to_time(info: dict) -> datetime:
    """When an object was last changed, by what its file system calls it; in whole microseconds."""
    value = next((info[name] for name in TIMES if name in info), 0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    time = value if isinstance(value, datetime) else datetime.fromtimestamp(float(value), UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """The object, to be read."""
    system, name = url_to_fs(unquote(path))
    with system.open(name, "rb") as file:
        yield cast(BinaryIO, file)
