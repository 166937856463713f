"""The landing folder: its files, limits and filters."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from pathlib import Path
from typing import IO
from urllib.parse import unquote
from uuid import uuid4

import dagster as dg
from pydantic import Field

from resources.delta.row_groups import Page
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

PART_PREFIX = ".fetching-"  # of a file that is still being written; listings skip it
MEBIBYTE = 1024 * 1024


def put(root: str, relative_path: str, file: IO[bytes]) -> None:
    """Writes the file to its path below the folder, replacing an existing one.

    Raises:
        OSError: The file cannot be written, or its folder is a link.
    """
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        with system.open(path, "wb") as whole:  # an object appears when it is closed
            shutil.copyfileobj(file, whole)
        return
    target = Path(root) / relative_path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent != Path(root) and target.parent.is_symlink():
        raise NotADirectoryError(f"{target.parent} is a link: replace it with a folder")
    part = target.with_name(f"{PART_PREFIX}{uuid4().hex}")
    try:
        with part.open("xb") as whole:
            shutil.copyfileobj(file, whole)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def exists(root: str, relative_path: str) -> bool:
    """Whether a file, link or anything else with this name exists."""
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        return system.exists(path)
    target = Path(root) / relative_path
    return target.exists() or target.is_symlink()


def remove(root: str, relative_path: str) -> None:
    """Removes the file, if it exists."""
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        if system.exists(path):
            system.rm_file(path)
    else:
        (Path(root) / relative_path).unlink(missing_ok=True)


def prepare(root: str) -> None:
    """Creates the folder if necessary, and removes partial files of killed runs."""
    if not is_url(root):
        Path(root).mkdir(parents=True, exist_ok=True)
        for part in (*Path(root).glob(f"{PART_PREFIX}*"), *Path(root).glob(f"*/{PART_PREFIX}*")):
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Listing:
    """The paths in the folder, whether each is a regular file, and a function that returns a file's current state.

    On disk, listing names is cheap but each state costs a system call; object storage lists names and states together.
    """

    names: Mapping[str, bool]
    stat_file: Callable[[str], ImageFile | None]
    unreadable: Mapping[str, str] = field(default_factory=dict)  # folders that cannot be read, and why


class FolderUnavailable(FileNotFoundError):
    """The landing folder does not exist, cannot be listed, or lacks too many files to be believed."""


class ImageFolder(dg.ConfigurableResource):
    """The landing folder: one subfolder per label; photos without a label directly in it."""

    root: str = Field(description="A folder on disk, or a URL that fsspec can open.")
    include: list[str] = Field(default=[], description="File name patterns to import. Default: image suffixes.")
    exclude: list[str] = Field(default=[], description="File and folder name patterns to skip.")
    settle_seconds: float = Field(
        default=2.0, ge=0, description="How long a file must stay unchanged before it is imported."
    )
    content_limit_bytes: int = Field(
        default=512 * MEBIBYTE, gt=0, description="Tables store larger files without their content."
    )
    pixel_limit: int = Field(
        default=50_000_000, gt=0, description="Images with more pixels are downscaled while they are decoded."
    )
    page: Page = Field(
        default="non_blank",
        description="Which page or frame of an image is used: the first, or the first that is not blank.",
    )
    size_limit_bytes: int = Field(default=16 * 1024 * MEBIBYTE, gt=0, description="Larger files are quarantined.")
    sweep_files: int = Field(
        default=10_000, gt=0, description="Known files whose size and time a tick checks for changes."
    )
    sweep_bytes: int = Field(
        default=16 * MEBIBYTE,
        gt=0,
        description="Bytes of known files that a tick reads again, to find changes with the same size and time.",
    )
    decode_seconds: float = Field(
        default=10,
        gt=0,
        description="CPU time for decoding an image, plus 1 s per 16 MB; waiting may take ten times that.",
    )
    decode_memory_bytes: int = Field(default=1024 * MEBIBYTE, gt=0, description="Memory limit for decoding an image.")

    @property
    def path(self) -> str:
        """The folder as a table path: the beginning of all its files' paths."""
        if is_url(self.root):
            return to_url_path(self.root)
        return to_path(str(Path(self.root)).encode("utf-8", "surrogateescape"))

    def _matchers(self) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
        # Partial files have no suffix, so that they only need to be excluded if there are patterns to include.
        excluded = to_matcher([*self.exclude, f"{PART_PREFIX}*"] if self.include else self.exclude)
        included = to_matcher(self.include) if self.include else lambda name: name.lower().endswith(SUFFIXES)

        def wanted(name: str) -> bool:
            return included(name) and not excluded(name)

        return wanted, excluded

    def list_names(self) -> Listing:
        """Lists the image files in the folder.

        Raises:
            FolderUnavailable: The folder does not exist or cannot be read.
        """
        wanted, excluded = self._matchers()
        try:
            if is_url(self.root):
                objects = list_objects(self.root, wanted, excluded)
                return Listing(dict.fromkeys(objects, True), objects.get)
            names, unreadable = list_names(Path(self.root), wanted, excluded)
            return Listing(names, stat_file, unreadable)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FolderUnavailable(
                f"The landing folder {self.root} does not exist. Create it, with one subfolder of photos per label, "
                "or set IMAGE_ASSETS_LANDING to another folder."
            ) from error
        except OSError as error:
            raise FolderUnavailable(
                f"The landing folder {self.root} cannot be listed: {error}. Check that it is mounted or reachable, and "
                "that this account may read it."
            ) from error

    def device(self) -> int | None:
        """The id of the file system that the folder is on; None for URLs."""
        return None if is_url(self.root) else os.statvfs(self.root).f_fsid % 2**63  # Delta logs signed numbers

    def list_paths(self, paths: Iterable[str]) -> Listing:
        """Lists only the files with these paths, as far as they exist and `list_names` would list them."""
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
        """The current state of every image file in the folder."""
        listing = self.list_names()
        return [file for path in listing.names if (file := listing.stat_file(path))]

    def settled(self, files: Sequence[ImageFile], sleep: Callable[[float], None] = time.sleep) -> list[ImageFile]:
        """The files that are no longer being written: older than the settle period, or unchanged after it."""
        old = set(self.old_enough(files))
        if len(old) == len(files):
            return list(files)
        sleep(self.settle_seconds)
        stat_again = self.list_names().stat_file
        return [file for file in files if file in old or stat_again(file.path) == file]

    def old_enough(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """The files that did not change within the settle period; times in the future are ignored."""
        now = datetime.now(UTC)
        since = now - timedelta(seconds=self.settle_seconds)
        return [file for file in files if not since < file.modification_time <= now]

    def require_files(self) -> None:
        """A FileNotFoundError if the folder contains no image files."""
        if not self.list_names().names:
            expected = ", ".join(self.include) or f"files ending in {', '.join(SUFFIXES)}"
            raise FileNotFoundError(
                f"The landing folder {self.root} contains no image files. "
                f"Expected {expected}, in one subfolder per label."
            )


def to_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a name, relative to the landing folder, matches one of the patterns.

    Case is ignored. A pattern with a slash is compared with the whole name, one without with its last part.
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
