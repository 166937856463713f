"""The folder where image files land."""

import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from pathlib import Path
from typing import IO
from urllib.parse import unquote
from uuid import uuid4

import dagster as dg
from pydantic import Field

from resources.files.file_system import (
    SUFFIXES,
    ImageFile,
    is_url,
    list_names,
    list_objects,
    stat_file,
    stat_object,
    to_path,
    to_url_path,
    uncached_file_system,
)

PART_PREFIX = ".fetching-"  # how a file is called before it is whole; listings pass over it


def put(root: str, relative_path: str, file: IO[bytes]) -> None:
    """Lay the file at its place below the folder, in place of one that is there.

    OSError where it cannot be written, or where its folder is a link to somewhere else.
    """
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        with system.open(path, "wb") as whole:  # an object is there once it is closed
            shutil.copyfileobj(file, whole)
        return
    target = Path(root) / relative_path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent != Path(root) and target.parent.is_symlink():
        raise NotADirectoryError(f"{target.parent} is a link: expected a folder")
    part = target.with_name(f"{PART_PREFIX}{uuid4().hex}")
    try:
        with part.open("xb") as whole:
            shutil.copyfileobj(file, whole)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def is_there(root: str, relative_path: str) -> bool:
    """Whether there is a file of this name, whatever it is."""
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        return system.exists(path)
    target = Path(root) / relative_path
    return target.exists() or target.is_symlink()


def remove(root: str, relative_path: str) -> None:
    """Remove the file, where it is still there."""
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        if system.exists(path):
            system.rm_file(path)
    else:
        (Path(root) / relative_path).unlink(missing_ok=True)


def prepare(root: str) -> None:
    """Make the folder where there is none, and remove what runs left that were killed while they wrote."""
    if not is_url(root):
        Path(root).mkdir(parents=True, exist_ok=True)
        for part in (*Path(root).glob(f"{PART_PREFIX}*"), *Path(root).glob(f"*/{PART_PREFIX}*")):
            part.unlink(missing_ok=True)


MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Listing:
    """The names in the folder by path, whether each is a regular file, and the way to look at one of them.

    On disk a look is a call for each file, so that only names cost nothing; object storage tells all with the names.
    """

    names: Mapping[str, bool]
    stat_file: Callable[[str], ImageFile | None]


class ImageFolder(dg.ConfigurableResource):
    """The landing folder: one sub-folder for each label, photographs without a label directly in it."""

    root: str = Field(description="A folder on disk, or a URL that fsspec takes.")
    include: list[str] = Field(default=[], description="Patterns of names to take in; by default by suffix.")
    exclude: list[str] = Field(default=[], description="Patterns of names and folders to leave out.")
    settle_seconds: float = Field(default=2.0, ge=0, description="A file this long unchanged is taken as whole.")
    content_limit_bytes: int = Field(
        default=512 * MEBIBYTE, gt=0, description="Larger files are not carried in tables: their rows hold the path."
    )
    size_limit_bytes: int = Field(default=16 * 1024 * MEBIBYTE, gt=0, description="Larger files are quarantined.")
    sweep_files: int = Field(
        default=10_000, gt=0, description="How many known files a tick looks at again, for replaced ones."
    )
    sweep_bytes: int = Field(
        default=16 * MEBIBYTE, gt=0, description="How much of them it also reads, for those replaced unnoticeably."
    )
    decode_seconds: float = Field(
        default=10, gt=0, description="Time to decode an image, and 1 s for each 16 MB of it."
    )
    decode_memory_bytes: int = Field(default=1024 * MEBIBYTE, gt=0, description="Memory to decode an image in.")

    @property
    def path(self) -> str:
        """The folder, as the paths of its files begin."""
        if is_url(self.root):
            return to_url_path(self.root)
        return to_path(str(Path(self.root)).encode("utf-8", "surrogateescape"))

    def _matchers(self) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
        # Without patterns of its own a name is taken in by its suffix, and a part of a file has none.
        excluded = to_matcher([*self.exclude, f"{PART_PREFIX}*"] if self.include else self.exclude)
        included = to_matcher(self.include) if self.include else lambda name: name.lower().endswith(SUFFIXES)

        def wanted(name: str) -> bool:
            return included(name) and not excluded(name)

        return wanted, excluded

    def list_names(self) -> Listing:
        """The names of the image files in the folder; FileNotFoundError when there is no such folder."""
        wanted, excluded = self._matchers()
        if is_url(self.root):
            objects = list_objects(self.root, wanted, excluded)
            return Listing(dict.fromkeys(objects, True), objects.get)
        if not Path(self.root).is_dir():
            raise FileNotFoundError(
                f"the landing folder {self.root} does not exist: make it, with one sub-folder of photographs "
                "for each label, or name another one by IMAGE_ASSETS_LANDING"
            )
        return Listing(list_names(Path(self.root), wanted, excluded), stat_file)

    def list_paths(self, paths: Iterable[str]) -> Listing:
        """Those of the files that are there, each looked at; those that a listing would leave out are left out."""
        wanted, excluded = self._matchers()
        found: dict[str, ImageFile] = {}
        for path in paths:
            relative_path = unquote(path.removeprefix(f"{self.path}/"), errors="surrogateescape")
            folders = [relative_path[:index] for index, letter in enumerate(relative_path) if letter == "/"]
            inside = path.startswith(f"{self.path}/") and (is_url(self.root) or ".." not in relative_path.split("/"))
            if inside and wanted(relative_path) and not any(map(excluded, folders)):
                file = stat_object(path) if is_url(self.root) else stat_file(path)
                found |= {path: file} if file else {}
        return Listing({path: file.regular for path, file in found.items()}, found.get)

    def list_files(self) -> list[ImageFile]:
        """Every image file in the folder, each looked at."""
        listing = self.list_names()
        return [file for path in listing.names if (file := listing.stat_file(path))]

    def settled(self, files: Sequence[ImageFile], sleep: Callable[[float], None] = time.sleep) -> list[ImageFile]:
        """Those of the files that are no longer being written: as old as the settle period, or still after it."""
        old = set(self.old_enough(files))
        if len(old) == len(files):
            return list(files)
        sleep(self.settle_seconds)
        stat_again = self.list_names().stat_file
        return [file for file in files if file in old or stat_again(file.path) == file]

    def old_enough(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """Those of the files that nobody changed within the settle period; a time in the future tells nothing."""
        now = datetime.now(UTC)
        since = now - timedelta(seconds=self.settle_seconds)
        return [file for file in files if not since < file.modification_time <= now]

    def require_files(self) -> None:
        """FileNotFoundError when the folder holds no image file at all."""
        if not self.list_names().names:
            expected = ", ".join(self.include) or f"files ending in {', '.join(SUFFIXES)}"
            raise FileNotFoundError(
                f"the landing folder {self.root} holds no image file: expected {expected}, "
                "in one sub-folder for each label"
            )


def to_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name, relative to the landing folder, matches one of the patterns, in either case of letters.

    A pattern with a slash is matched with the whole of it, one without with the last part: of a file or a folder.
    """
    if not patterns:
        return lambda _: False
    whole, last = (
        re.compile("|".join(translate(pattern) for pattern in chosen) or r"(?!)", re.IGNORECASE)
        for chosen in (
            [pattern for pattern in patterns if "/" in pattern],
            [pattern for pattern in patterns if "/" not in pattern],
        )
    )
    return lambda name: bool(last.match(name.rpartition("/")[2]) or whole.match(name))
