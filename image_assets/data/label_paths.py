"""Which files the paths in a label table mean, however another system or program has written them."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from posixpath import normpath
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from resources.files.file_system import SCHEME, escaped, is_url, to_path, to_url_path

# How a path may differ from the file's, from slight to severe: of several files, the most similar one is meant.
BACKSLASHES, TABLE_FOLDER, UNICODE, CASE, NO_SUFFIX = "backslashes", "table_folder", "unicode_form", "case", "no_suffix"
LEADING_FOLDERS, LABEL_STUDIO, NO_FOLDER = "leading_folders", "label_studio", "no_folder"
PERCENT = "percent_encoding"
SEVERITY = {
    kind: 1 << power
    for power, kind in enumerate(
        (BACKSLASHES, PERCENT, TABLE_FOLDER, UNICODE, CASE, NO_SUFFIX, LABEL_STUDIO, LEADING_FOLDERS, NO_FOLDER)
    )
}
MANY = 20  # files of one name
DRIVE = re.compile(r"[A-Za-z]:/")
LOCAL_FILES = "/data/local-files/"  # of Label Studio: the path is in the query
UPLOADS = re.compile(r"/data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?(?P<name>[^/]+)$")


class Match(NamedTuple):
    """The files that a path may mean, and how it differs from them; one file unless it is ambiguous.

    `written` is the path as our tables would write it. It is the only one in `paths` if no file is similar.
    """

    written: str
    paths: tuple[str, ...]
    kinds: tuple[str, ...] = ()


def to_table_path(name: str, landing: str) -> str:
    """The path as our tables write it; a label table may use relative paths, absolute paths or addresses."""
    if is_url(name):
        return to_url_path(name)
    if name.startswith(SCHEME):
        return f"{SCHEME}/{name.removeprefix(SCHEME).lstrip('/')}"
    if name.startswith("/"):
        return to_path(str(PurePosixPath(name)).encode())
    return f"{landing}/{escaped(str(PurePosixPath(name)))}" if name else ""


def in_nfc(name: str) -> str:
    """The name in the Unicode form that most systems write."""
    return normalize("NFC", name)


def folded(name: str) -> str:
    """The name without what distinguishes Unicode forms and capital letters."""
    return in_nfc(in_nfc(name).casefold())


def stem(name: str) -> str:
    """The name without its suffix."""
    return name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name


def last_two(path: str) -> str:
    """The name of a file and of its folder."""
    return "/".join(path.split("/")[-2:])


def difference(name: str, file: str, *, below_any_folder: bool) -> tuple[str, ...] | None:
    """How a relative path differs from that of a file; None if they are not similar.

    Args:
        name: Relative to the landing folder.
        file: Relative to the landing folder.
        below_any_folder: Whether `name` may be relative to any folder in the landing folder.
    """
    for kinds, form in (((), str), ((UNICODE,), in_nfc), ((CASE,), folded)):
        for more, other in (((), file), ((NO_SUFFIX,), stem(file))):
            if form(name) == form(other):
                return (*kinds, *more)
            if below_any_folder and form(other).endswith(f"/{form(name)}"):
                return (*kinds, *more, NO_FOLDER)
    return None


class Variant(NamedTuple):
    """What a path may mean, relative to the landing folder, and how that differs from what is written."""

    relative_path: str
    kinds: tuple[str, ...]
    below_any_folder: bool = False


def variants(name: str, landing: str, folder: str) -> Iterator[Variant]:
    """What a path may mean, as it is written and, if it is percent-encoded as in an address, decoded.

    Args:
        name: The path as the label table writes it.
        landing: The landing folder, as a table path.
        folder: The label table's own folder relative to the landing folder; empty if it is not in it.
    """
    kinds: tuple[str, ...] = ()
    if "\\" in name:
        name, kinds = name.replace("\\", "/"), (BACKSLASHES,)
    yield from _variants(name, landing, folder, kinds)
    if (plain := unquote(name)) != name:
        yield from _variants(plain, landing, folder, (*kinds, PERCENT))


def _variants(name: str, landing: str, folder: str, kinds: tuple[str, ...]) -> Iterator[Variant]:
    path, is_full = to_table_path(name, landing), is_url(name) or name.startswith(("/", SCHEME))
    if path.startswith(f"{landing}/") and not DRIVE.match(name):
        relative_path = path.removeprefix(f"{landing}/")
        yield Variant(relative_path, kinds, below_any_folder=not is_full)
        if not is_full:
            if folder:
                yield Variant(normpath(f"{folder}/{relative_path}"), (*kinds, TABLE_FOLDER))
            yield from shortened(relative_path, landing, kinds)
        return
    address, query = parts_of(name)
    if address == LOCAL_FILES:
        relative_path = escaped(unquote(query.partition("d=")[2]).strip("/"))
        yield Variant(relative_path, (*kinds, LABEL_STUDIO), below_any_folder=True)
        yield from shortened(relative_path, landing, (*kinds, LABEL_STUDIO))
        return
    if found := UPLOADS.search(address):
        yield Variant(escaped(unquote(found["name"])), (*kinds, LABEL_STUDIO), below_any_folder=True)
    folders = escaped(str(PurePosixPath(address))).strip("/").split("/")
    for first in range(len(folders)):
        yield Variant("/".join(folders[first:]), (*kinds, LEADING_FOLDERS))


def parts_of(name: str) -> tuple[str, str]:
    """The path and the query of an address; the name itself if it is none."""
    if is_url(name):
        with suppress(ValueError):  # such as http://[a
            return unquote(urlsplit(name).path), urlsplit(name).query
    address, _, query = name.partition("?") if name.startswith(LOCAL_FILES) else (name, "", "")
    return address, query


def shortened(relative_path: str, landing: str, kinds: tuple[str, ...]) -> Iterator[Variant]:
    """A relative path without the folders up to one that is called like the landing folder."""
    _, called, below = f"/{relative_path}".rpartition(f"/{landing.rpartition('/')[2]}/")
    if called and below:
        yield Variant(below, (*kinds, LEADING_FOLDERS))


@dataclass(frozen=True)
class Files:
    """The files in the landing folder, to be found by paths that other systems have written."""

    paths: Collection[str]
    landing: str
    # The files of each name that many files have, by their last two names and by their whole path; filled when asked.
    by_ending: dict[str, Mapping[str, list[str]]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> Mapping[str, list[str]]:
        """The relative paths of the files with a name, or with that name before the suffix; in no spelling."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            if path.startswith(f"{self.landing}/"):
                relative_path = path.removeprefix(f"{self.landing}/")
                name = folded(relative_path.rpartition("/")[2])
                for key in dict.fromkeys((name, stem(name))):
                    found[key].append(relative_path)
        return found

    def similar(self, variant: Variant) -> Sequence[str]:
        """The files that a path may mean: those with its name or, of many, those with its folder as well."""
        path = folded(variant.relative_path)
        name = path.rpartition("/")[2]
        named = self.by_name.get(name, ())
        if len(named) <= MANY:
            return named
        if name not in self.by_ending:
            found: dict[str, list[str]] = defaultdict(list)
            for file in named:
                whole = folded(file)
                for key in {of(part) for part in (whole, stem(whole)) for of in (str, last_two)}:
                    found[key].append(file)
            self.by_ending[name] = found
        if not variant.below_any_folder:
            return self.by_ending[name].get(path, ())
        return self.by_ending[name].get(last_two(path), ()) if "/" in path else named

    def match(self, name: str, folder: str, taken: Collection[str]) -> Match:
        """The file that a path means, without those that other rows name exactly."""
        least, matches = 0, dict[str, tuple[str, ...]]()
        for variant in variants(name, self.landing, folder):
            relative_path, kinds, below_any_folder = variant
            for file in self.similar(variant):
                more = difference(relative_path, file, below_any_folder=below_any_folder)
                path = f"{self.landing}/{file}"
                if more is None or path in taken:
                    continue
                severity = sum(SEVERITY[kind] for kind in (*kinds, *more))
                if not matches or severity < least:
                    least, matches = severity, {path: (*kinds, *more)}
                elif severity == least:
                    matches[path] = (*kinds, *more)
            if LEADING_FOLDERS in kinds and matches:
                break  # the more of its folders agree, the better
        written = to_table_path(name, self.landing)
        return Match(written, (*sorted(matches),) or (written,), next(iter(matches.values()), ()))


def match_names(names: Iterable[tuple[str, str]], paths: Collection[str], landing: str) -> dict[tuple[str, str], Match]:
    """The files that the paths of a label table mean.

    Args:
        names: The paths as they are written, each with the folder of its table relative to the landing folder.
        paths: The files in the landing folder, as table paths; a set.
        landing: The landing folder, as a table path.
    """
    exact = {name: to_table_path(name[0], landing) for name in names}
    taken = {path for path in exact.values() if path in paths}
    files = Files(paths, landing)
    return {name: Match(path, (path,)) if path in taken else files.match(*name, taken) for name, path in exact.items()}
