"""Files on disk and objects in object storage: their names as table paths, their state, and reading them.

Runs in executors: no Dagster.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self, cast
from urllib.parse import unquote, unquote_to_bytes

import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs

UNREACHABLE = (OSError, BotoCoreError)  # s3fs raises botocore's errors if S3 does not answer, or without credentials
SCHEME = "file:"
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".heic", ".heif", ".hif", ".avif", ".jxl"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".dcm", ".dicom"),
)
TO_ESCAPE = re.compile("[%\n\r\udc80-\udcff]+")
# What S3, Azure, SFTP, Google and fsspec's memory file system call the modification time.
MODIFICATION_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
# The server or bucket of a URL, with the file systems in front of it (`simplecache::s3://bucket`); empty for a folder.
SERVER_AND_NAME = re.compile(r"((?:[^:/]+::)*[^:/]+://[^/]*|)(.*)", re.DOTALL)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The first and the last time in tables: a day within the years 1 to 9999, so that every time zone can show them.
FIRST_TIME, LAST_TIME = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True)
class ImageFile:
    """One file of a listing; `regular` is false for links, pipes and devices.

    `problem` says why size and time could not be read; the other fields then mean nothing.
    """

    path: str
    modification_time: datetime
    length: int
    regular: bool
    problem: str = ""

    @classmethod
    def unreadable(cls, path: str, problem: str) -> "ImageFile":
        """A file whose size and time could not be read."""
        return cls(path, EPOCH, 0, regular=False, problem=problem)


class FileChanged(OSError):
    """The file changed after it was listed: it is still being written, or was replaced."""


def escaped(name: str) -> str:
    """A file name as `os.fsdecode` returns it, with `%`, line breaks and bytes that are not UTF-8 as `%XX`."""
    if not TO_ESCAPE.search(name):
        return name
    return TO_ESCAPE.sub(lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found[0])), name)


def to_path(name: bytes) -> str:
    """A local file's name as a table path. It stays readable, and `to_name` restores the exact bytes.

    Only `%`, line breaks and bytes that are not UTF-8 become `%XX`.
    """
    return SCHEME + escaped(os.fsdecode(name))


def to_name(path: str) -> bytes:
    """The name on disk of a table path."""
    return unquote_to_bytes(path.removeprefix(SCHEME))


def to_url_path(url: str) -> str:
    """A URL as a table path: `%` and line breaks become `%XX`, as in local paths."""
    return escaped(url.rstrip("/"))


def is_url(name: str) -> bool:
    """Whether a folder or path is a URL for fsspec instead of a local one."""
    return "://" in name and not name.startswith(SCHEME)


def require_file_or_s3(location: str) -> None:
    """Raises ValueError unless the source of images or of a table is a local path or an S3 URL.

    For `fetch_images` and `unpack_parquet`: other URLs could reach servers in this machine's network, also through a
    chain of file systems (`a::b`).
    """
    if "::" in location or (is_url(location) and not location.startswith("s3://")):
        raise ValueError("the location is not supported: expected a local path or s3://…, without ::")


def link_target(name: bytes | str, link_roots: Sequence[str]) -> str | None:
    """Where a local name leads once all links are resolved; None unless that is below one of the roots.

    The roots are real paths. A loop of links leads nowhere, so that opening its end fails.
    """
    if not link_roots:
        return None
    target = os.path.realpath(os.fsdecode(name))
    return target if any(target.startswith(f"{root.rstrip('/')}/") for root in link_roots) else None


def stat_file(path: str, link_roots: Sequence[str] = ()) -> ImageFile | None:
    """A local file's current state, or None if it is gone; of a link below the roots, the state of its target."""
    try:
        status = os.lstat(to_name(path))
        if stat.S_ISLNK(status.st_mode) and (target := link_target(to_name(path), link_roots)):
            with suppress(FileNotFoundError, NotADirectoryError):  # a link that leads nowhere is not gone
                status = os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return ImageFile.unreadable(path, error.strerror or str(error))
    return ImageFile(
        path=path,
        modification_time=to_datetime(status.st_mtime_ns // 1000),
        length=status.st_size,
        regular=stat.S_ISREG(status.st_mode),
    )


def stat_object(path: str) -> ImageFile | None:
    """An object's current state, or None if it is gone; a BotoCoreError if S3 does not answer."""
    system, name = uncached_file_system(unquote(path))
    try:
        info = system.info(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return ImageFile.unreadable(path, str(error))
    return to_image_file(path, info) if info["type"] == "file" else None


def to_image_file(path: str, info: dict) -> ImageFile:
    """The object that fsspec describes by `info`."""
    try:
        return ImageFile(path, to_time(info), int(info["size"]), regular=True)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        return ImageFile.unreadable(path, f"size or time is invalid ({type(error).__name__}: {error})")


def to_time(info: dict) -> datetime:
    """An object's modification time, under whatever name its file system gives it; in whole microseconds."""
    value = next((info[name] for name in MODIFICATION_TIMES if name in info), 0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    time = value if isinstance(value, datetime) else to_datetime(round(float(value) * 1e6))
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def to_datetime(microseconds: int) -> datetime:
    """The time so many microseconds after 1970; times that tables cannot hold become the nearest one that they can."""
    try:
        return min(max(EPOCH + timedelta(microseconds=microseconds), FIRST_TIME), LAST_TIME)
    except OverflowError:
        return LAST_TIME if microseconds > 0 else FIRST_TIME


class OpenFolders:
    """Keeps the folder of the last file open for the next one, which is usually beside it, and the folders above it.

    Each is opened below the one before, without following links. A folder that is moved meanwhile is read where it was.
    """

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._descriptors: list[int] = []  # of the root, then of each name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(0)

    def descriptor(self, names: list[bytes]) -> int:
        """The descriptor of a local folder, by the names of the folders on the way from the root."""
        if names != self._names or not self._descriptors:
            same = os.path.commonprefix([(*names,), (*self._names,)])
            self._close(1 + len(same))
            if not self._descriptors:
                self._descriptors.append(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
            for name in names[len(self._names) :]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                self._descriptors.append(os.open(name, flags, dir_fd=self._descriptors[-1]))
                self._names.append(name)
        return self._descriptors[-1]

    def _close(self, kept: int) -> None:
        """Closes all descriptors except the first ones."""
        while len(self._descriptors) > kept:
            os.close(self._descriptors.pop())
        del self._names[max(0, kept - 1) :]


@contextmanager
def open_file(path: str, link_roots: Sequence[str] = (), open_folders: OpenFolders | None = None) -> Iterator[BinaryIO]:
    """Opens a file or object for reading.

    Local folders are opened one below the other, without following links. If a folder is replaced by a link, even
    after the listing, nothing outside the landing folder and the roots is read.

    Args:
        path: The file's table path.
        link_roots: Real paths of the folders that links may lead to; without them, no link is followed.
        open_folders: Keeps folders open from one file to the next.

    Raises:
        OSError: It is gone, it is not a regular file, or its path contains a link.
    """
    if is_url(path):
        system, object_name = file_system_at(unquote(path))
        with system.open(object_name, "rb") as file:
            yield cast(BinaryIO, file)
        return
    target = link_target(to_name(path), link_roots)
    *folders, name = (os.fsencode(target) if target else to_name(path)).split(b"/")[1:]
    with nullcontext(open_folders) if open_folders else OpenFolders() as opened:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(name, flags, dir_fd=opened.descriptor(folders))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file


def read_content(
    path: str, *, length: int, link_roots: Sequence[str] = (), open_folders: OpenFolders | None = None
) -> bytes:
    """The bytes of a file or object; the roots and folders are those of `open_file`.

    Raises:
        FileChanged: It does not have the listed length, or changed while it was read.
        OSError: As in `open_file`.
    """
    with open_file(path, link_roots, open_folders) as file:
        before = modification_stamp(file)
        content = file.read()
        if len(content) != length or modification_stamp(file) != before:
            raise FileChanged(f"{path} had {length} bytes when listed and {len(content)} when read")
    return content


def modification_stamp(file: BinaryIO) -> int | None:
    """A number that changes when someone writes to the open file; None for objects, which are only replaced whole."""
    try:
        return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def file_system_at(url: str, **options: bool) -> tuple[Any, str]:  # Any: fsspec's types depend on the arguments
    """The fsspec file system of a URL or folder, and the path in it.

    `::` in the name of an object or folder is part of the name. fsspec would take what follows for another file system
    in a chain, and open the object whose name ends before it.
    """
    server, name = cast("re.Match[str]", SERVER_AND_NAME.fullmatch(url)).groups()
    if "::" not in name:
        system, path = url_to_fs(url, **options)
        return system, str(path)
    system, path = url_to_fs(server or "/", **options)
    return system, f"{path}{name}" if server else str(Path(name).absolute())


def uncached_file_system(url: str) -> tuple[Any, str]:  # Any: as above
    """The same without a cache of listings."""
    return file_system_at(url, use_listings_cache=False)


def arrow_system(url: str) -> tuple[pafs.FileSystem, str]:
    """The same as a pyarrow file system."""
    system, path = uncached_file_system(url)
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path
