"""Listings of a folder or prefix: the files in it, what cannot be read, and counts of what is skipped."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from resources.files.file_system import (
    ImageFile,
    escaped,
    file_system_at,
    link_target,
    to_image_file,
    to_path,
    to_url_path,
)

NO_SUFFIX = "(no suffix)"
LISTED = 20  # kinds in a text
MAX_SUFFIX = 16  # characters; what follows the last dot of a longer name is not a suffix


@dataclass
class Skipped:
    """What a listing leaves out.

    `suffixes` counts files that are not images by their suffix, `files` counts excluded files by the pattern that
    excludes them, and `folders` counts excluded folders by name. The files in excluded folders are not counted,
    because that would take a listing of them.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def by_kind(self) -> dict[str, Counter[str]]:
        """The counts, by what they count."""
        return {"other files": self.suffixes, "excluded files": self.files, "excluded folders": self.folders}

    def rows(self) -> list[tuple[str, str, int]]:
        """The suffix, pattern or folder, what was skipped, and how often; most frequent first."""
        found = [(name, kind, count) for kind, counts in self.by_kind().items() for name, count in counts.items()]
        return sorted(found, key=lambda row: (-row[2], row[0]))

    def __str__(self) -> str:
        parts = []
        for kind, counts in self.by_kind().items():
            most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:LISTED]
            shown = [f"{name} {count:,}" for name, count in most]
            more = [f"{len(counts) - LISTED:,} more kinds"] if len(counts) > LISTED else []
            parts += [f"{counts.total():,} {kind} ({', '.join([*shown, *more])})"] if counts else []
        return ", ".join(parts)


@dataclass(frozen=True)
class NameFilter:
    """Which names a listing keeps; names are relative to the landing folder.

    `included` tells whether a file has one of the wanted names, `excluded` which pattern excludes a file or folder,
    as an empty text for none.
    """

    included: Callable[[str], bool]
    excluded: Callable[[str], str]

    def takes(self, name: str) -> bool:
        """Whether a file with this name is listed, as far as its name decides."""
        return self.included(name) and not self.excluding(name)

    def excluding(self, name: str) -> str:
        """The pattern that excludes a file, or a folder that it is in; empty if there is none."""
        return next(filter(None, map(self.excluded, [name, *folders_of(name)])), "")

    def why_skipped(self, name: str) -> str:
        """Why a file with this name is not listed; empty if it is."""
        if pattern := self.excluding(name):
            return f"listings would skip {name} because of {pattern}"
        return "" if self.included(name) else f"listings would skip {name}, which IMAGE_ASSETS_INCLUDE does not match"

    def keeps(self, name: str, skipped: Skipped) -> bool:
        """Whether to list a file in a folder that is not excluded; counts it as skipped otherwise."""
        if not self.included(name):
            skipped.suffixes[suffix_of(name)] += 1
            return False
        if pattern := self.excluded(name):
            skipped.files[pattern] += 1
            return False
        return True


def folders_of(name: str) -> list[str]:
    """The folders that a name is in, outermost first."""
    return [name[:index] for index, letter in enumerate(name) if letter == "/"]


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem and 0 < len(suffix) <= MAX_SUFFIX else NO_SUFFIX


@dataclass(frozen=True)
class Listing:
    """The paths in the folder, whether each is a regular file, and a function that returns a file's current state.

    On disk, listing names is cheap but each state costs a system call; object storage lists names and states together.
    """

    names: Mapping[str, bool]
    stat_file: Callable[[str], ImageFile | None]
    unreadable: Mapping[str, str] = field(default_factory=dict)  # folders that cannot be read, and why
    skipped: Skipped = field(default_factory=Skipped)


@dataclass(frozen=True)
class _Folder:
    location: str  # where it is on disk, without links below the landing folder
    path: str  # its table path
    name: str  # relative to the landing folder, with a slash at the end


@dataclass
class _Walk:
    """A listing in progress: what was found, and the folders, and links to folders, that are to be listed."""

    names: NameFilter
    link_roots: Sequence[str]
    folders: list[_Folder]
    links: list[_Folder] = field(default_factory=list)  # followed after all real folders
    found: dict[str, bool] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)

    def take(self, entry: os.DirEntry[str], folder: _Folder) -> None:
        """Adds an entry of the folder to what it belongs to."""
        name, path = f"{folder.name}{entry.name}", f"{folder.path}/{escaped(entry.name)}"
        is_folder, is_file = entry_kind(entry)
        if is_folder or (not is_file and leads_to_folder(entry)):
            if self.names.excluded(name):
                self.skipped.folders[entry.name] += 1
            elif is_folder:
                self.folders.append(_Folder(entry.path, path, f"{name}/"))
            elif target := link_target(entry.path, self.link_roots):
                self.links.append(_Folder(target, path, f"{name}/"))
            else:
                self.found[path] = False
        elif self.names.keeps(name, self.skipped):
            self.found[path] = is_file or leads_to_file(entry, self.link_roots)


def list_names(
    root: Path, names: NameFilter, stat_file: Callable[[str], ImageFile | None], link_roots: Sequence[str] = ()
) -> Listing:
    """The files below a local folder, without opening any of them.

    Args:
        root: The folder. Links in it are listed if their names are wanted or they lead to folders.
        names: Which files and folders to list.
        stat_file: Returns a file's current state.
        link_roots: Real paths of the folders that links may lead to; other links are never followed. Folders are
            listed once each, so that loops of links end.

    Raises:
        OSError: The root itself cannot be read.
    """
    location = os.path.realpath(root) if link_roots else str(root)
    walk = _Walk(names, link_roots, [_Folder(location, to_path(os.fsencode(root)), "")])
    unreadable: dict[str, str] = {}
    visited: set[str] = set()
    while walk.folders or walk.links:
        if not walk.folders:
            walk.links.sort(key=lambda link: link.name, reverse=True)
            link = walk.links.pop()
            if link.location in visited:  # listed elsewhere: the link itself is what is listed here
                walk.found[link.path] = False
                continue
            walk.folders.append(link)
        folder = walk.folders.pop()
        if link_roots:
            if folder.location in visited:
                continue
            visited.add(folder.location)
        try:
            entries = list(os.scandir(folder.location))
            os.stat(f"{folder.location}/.")  # noqa: PTH116 - pathlib drops the dot; fails if the folder may be listed, not entered
        except OSError as error:
            if not folder.name:
                raise
            if not isinstance(error, FileNotFoundError | NotADirectoryError):  # deleted during the listing
                unreadable[folder.path] = error.strerror or str(error)
            continue
        for entry in entries:
            walk.take(entry, folder)
    return Listing(walk.found, stat_file, unreadable, walk.skipped)


def entry_kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether the entry is a folder, and whether it is a regular file; neither if the system does not say."""
    try:
        return entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
    except OSError:
        return False, False


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a link to a folder."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return False


def leads_to_file(entry: os.DirEntry[str], link_roots: Sequence[str]) -> bool:
    """Whether the entry is a link to a regular file below one of the roots."""
    try:
        return entry.is_symlink() and link_target(entry.path, link_roots) is not None and entry.is_file()
    except OSError:
        return False


def list_objects(url: str, names: NameFilter) -> Listing:
    """The objects below a URL, with their states."""
    system, root = file_system_at(url)
    system.invalidate_cache()
    found: dict[str, ImageFile] = {}
    skipped = Skipped()
    excluded: dict[str, bool] = {"": False}  # by folder: every one is matched once, whatever the number of its objects

    def is_excluded(folder: str) -> bool:
        if folder not in excluded:
            outer, _, last = folder.rpartition("/")
            excluded[folder] = is_excluded(outer)
            if not excluded[folder] and names.excluded(folder):
                excluded[folder] = True
                skipped.folders[last] += 1
        return excluded[folder]

    for name, info in system.find(root, detail=True).items():
        relative_path = name.removeprefix(f"{root.rstrip('/')}/")  # a further slash belongs to the object's key
        if not is_excluded(relative_path.rpartition("/")[0]) and names.keeps(relative_path, skipped):
            path = f"{to_url_path(url)}/{escaped(relative_path)}"
            found[path] = to_image_file(path, info)
    return Listing(dict.fromkeys(found, True), found.get, {}, skipped)


def to_relative_name(path: str, landing: str) -> str:
    """A table path's name relative to the landing folder, as on disk; empty if it is not below the folder."""
    below = path.removeprefix(f"{landing}/")
    return "" if below == path else unquote(below, errors="surrogateescape")
