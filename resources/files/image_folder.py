"""The landing folder: its files, limits and filters."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from functools import partial
from pathlib import Path
from typing import IO, Literal
from uuid import uuid4

import dagster as dg
from pydantic import Field

from resources.delta.row_groups import MEBIBYTE, Page
from resources.files.file_system import (
    SUFFIXES,
    UNREACHABLE,
    ImageFile,
    is_url,
    stat_file,
    stat_object,
    to_path,
    to_url_path,
    uncached_file_system,
)
from resources.files.listing import (
    Listing,
    NameFilter,
    Skipped,
    folders_of,
    list_names,
    list_objects,
    to_relative_name,
)

MANY_PATHS = 100  # one request each takes longer than a listing, which has 1,000 objects a request
PART_PREFIX = ".fetching-"  # of a file that is still being written; listings skip it
SplitFolders = Literal["auto", "on", "off"]
# What systems and programs leave beside photographs: hidden files and folders (`.git`, `.dvc`, `.Trash-1000`,
# `.ipynb_checkpoints`, `._*` of macOS), folders of NAS systems, trash, and thumbnails.
LITTER = (
    *("._*", ".*", "__MACOSX", "lost+found"),
    *("@eaDir", "@Recycle", "@Recently-Snapshot", "@tmp", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
    *("thumbnail", "thumbnails", "thumbs", "_thumbs"),
)


def put(root: str, relative_path: str, file: IO[bytes]) -> None:
    """Writes the file to its path below the folder, replacing an existing one.

    Raises:
        OSError: The file cannot be written, or its folder is a link.
    """
    if is_url(root):
        system, path = uncached_file_system(f"{root}/{relative_path}")
        system.pipe_file(path, file.read())  # in one piece, so that an error while reading leaves no cut-off object
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
        for below in ("", "*/", "*/*/"):  # by label, or by split and label
            for part in Path(root).glob(f"{below}{PART_PREFIX}*"):
                part.unlink(missing_ok=True)


class FolderUnavailable(FileNotFoundError):
    """The landing folder does not exist, cannot be listed, or lacks too many files to be believed."""


class ImageFolder(dg.ConfigurableResource):
    """The landing folder: one subfolder per label; photos without a label directly in it."""

    root: str = Field(description="A folder on disk, or a URL that fsspec can open.")
    include: list[str] = Field(default=[], description="File name patterns to import. Default: image suffixes.")
    exclude: list[str] = Field(default=[], description="File and folder name patterns to skip.")
    litter: list[str] = Field(
        default=list(LITTER), description="More patterns to skip: hidden files, trash, thumbnails and the like."
    )
    link_roots: list[str] = Field(
        default=[], description="Folders that links in the landing folder may lead to; no other links are followed."
    )
    label_level: int = Field(
        default=1, description="Which folder is the label: 1 for the first level, -1 for the folder of the file."
    )
    merge_labels: bool = Field(
        default=False, description="Whether labels that differ in case, spaces or Unicode form only are one label."
    )
    split_folders: SplitFolders = Field(
        default="auto", description="Whether first-level folders named `train`, `val` or `test` are splits."
    )
    settle_seconds: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="How long a file must stay unchanged before it is imported."
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
        description="Bytes of known files on disk that a tick rereads, to find changes with the same size and time.",
    )
    decode_seconds: float = Field(
        default=10,
        gt=0,
        allow_inf_nan=False,
        description="CPU time for decoding an image, plus 1 s per 16 MB; waiting may take ten times that.",
    )
    decode_memory_bytes: int = Field(default=1024 * MEBIBYTE, gt=0, description="Memory limit for decoding an image.")

    @property
    def path(self) -> str:
        """The folder as a table path: the beginning of all its files' paths."""
        if is_url(self.root):
            return to_url_path(self.root)
        return to_path(str(Path(self.root)).encode("utf-8", "surrogateescape"))

    @property
    def real_link_roots(self) -> tuple[str, ...]:
        """The folders that links may lead to, without links in their own paths."""
        return tuple(os.path.realpath(root) for root in self.link_roots)

    def name_filter(self) -> NameFilter:
        """Which names listings keep."""
        excluded = to_matcher([*self.exclude, f"{PART_PREFIX}*", *self.litter])
        if not self.include:
            return NameFilter(lambda name: name.lower().endswith(SUFFIXES), excluded)
        included = to_matcher(self.include)
        return NameFilter(lambda name: bool(included(name)), excluded)

    def list_names(self) -> Listing:
        """Lists the image files in the folder.

        Raises:
            FolderUnavailable: The folder does not exist or cannot be read.
        """
        try:
            if is_url(self.root):
                return list_objects(self.root, self.name_filter())
            roots = self.real_link_roots
            return list_names(Path(self.root), self.name_filter(), partial(stat_file, link_roots=roots), roots)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = "is not a folder" if Path(self.root).exists() else "does not exist"
            raise FolderUnavailable(
                f"The landing folder {self.root} {found}. Create it, with one subfolder of photos per label, "
                "or set IMAGE_ASSETS_LANDING to another folder."
            ) from error
        except UNREACHABLE as error:
            raise self._not_listed(error) from error

    def _not_listed(self, error: Exception) -> FolderUnavailable:
        return FolderUnavailable(
            f"The landing folder {self.root} cannot be listed: {error}. Check that it is mounted or reachable, and "
            "that this account may read it."
        )

    def filtered_out(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that no listing has, whether or not the files exist: the filters skip them."""
        names = self.name_filter()
        return {path for path in paths if (name := to_relative_name(path, self.path)) and not names.takes(name)}

    def device(self) -> int | None:
        """The id of the file system that the folder is on; None for URLs."""
        return None if is_url(self.root) else os.statvfs(self.root).f_fsid % 2**63  # Delta logs signed numbers

    def list_paths(self, paths: Iterable[str]) -> Listing:
        """Lists only the files with these paths, as far as they exist and `list_names` would list them.

        Raises:
            FolderUnavailable: S3 does not answer.
        """
        names, skipped, excluded = self.name_filter(), Skipped(), set[str]()
        found: dict[str, ImageFile] = {}
        stat = stat_object if is_url(self.root) else partial(stat_file, link_roots=self.real_link_roots)
        for path in paths:
            name = to_relative_name(path, self.path)
            if not name or (not is_url(self.root) and ".." in name.split("/")):
                continue
            if folder := next(filter(names.excluded, folders_of(name)), None):
                excluded.add(folder)
            elif names.keeps(name, skipped):
                try:
                    file = stat(path)
                except UNREACHABLE as error:
                    raise self._not_listed(error) from error
                found |= {path: file} if file else {}
        skipped.folders.update(folder.rpartition("/")[2] for folder in excluded)
        return Listing({path: file.regular for path, file in found.items()}, found.get, {}, skipped)

    def stat_files(self, paths: Sequence[str]) -> Callable[[str], ImageFile | None]:
        """A function that returns the current state of each of these files; many objects are listed, not asked for."""
        listing = self.list_names() if is_url(self.root) and len(paths) > MANY_PATHS else self.list_paths(paths)
        return listing.stat_file

    def settled(self, files: Sequence[ImageFile], sleep: Callable[[float], None] = time.sleep) -> list[ImageFile]:
        """The files that are no longer being written: older than the settle period, or unchanged after it."""
        old = set(self.old_enough(files))
        if len(old) == len(files):
            return list(files)
        sleep(self.settle_seconds)
        stat_again = self.stat_files([file.path for file in files if file not in old])
        return [file for file in files if file in old or stat_again(file.path) == file]

    def old_enough(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """The files that did not change within the settle period; times in the future are ignored."""
        now = datetime.now(UTC)
        since = now - timedelta(seconds=self.settle_seconds)
        return [file for file in files if not since < file.modification_time <= now]

    def seconds_until_old_enough(self, files: Sequence[ImageFile]) -> float:
        """How long until the first of the files has not changed within the settle period; 0 for no files."""
        first = min((file.modification_time for file in files), default=None)
        return self.settle_seconds - (datetime.now(UTC) - first).total_seconds() if first else 0.0

    def require_files(self) -> None:
        """A FileNotFoundError if the folder contains no image files."""
        listing = self.list_names()
        if not listing.names:
            expected = ", ".join(self.include) or f"files ending in {', '.join(SUFFIXES)}"
            skipped = f" Skipped: {listing.skipped}." if str(listing.skipped) else ""
            raise FileNotFoundError(
                f"The landing folder {self.root} contains no image files.{skipped} "
                f"Expected {expected}, in one subfolder per label."
            )


def to_matcher(patterns: Sequence[str]) -> Callable[[str], str]:
    """A function that returns the pattern that a name, relative to the landing folder, matches; empty for none.

    Case is ignored. A pattern with a slash is compared with the whole name, one without with its last part.
    """
    if not patterns:
        return lambda _: ""
    whole, last = ([pattern for pattern in patterns if ("/" in pattern) == with_slash] for with_slash in (True, False))
    # One group for each pattern, so that the number of the group that matched is that of the pattern.
    match_whole, match_last = (
        re.compile("|".join(f"({translate(pattern)})" for pattern in chosen) or r"(?!)", re.IGNORECASE).match
        for chosen in (whole, last)
    )

    def matching(name: str) -> str:
        if found := match_last(name.rpartition("/")[2]):
            return last[(found.lastindex or 1) - 1]
        found = match_whole(name)
        return whole[(found.lastindex or 1) - 1] if found else ""

    return matching
