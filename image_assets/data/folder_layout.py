"""Which label and which split a file's folders give it, and what looks odd about the folders.

Labels are folder names. Where the first level is `train`, `val`, `test` or the like, it names the split, and labels are
counted from the level below.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import pyarrow.compute as pc

from image_assets.data.inspection import CURRENT
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.queries import query
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder

SPLITS = ("training", "validation", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
GIVEN_SPLITS = "given_splits"  # the ledger's log holds the splits that folders give under this name, as a sum of bits
LAYOUT = "folder_layout"  # a table's log holds the layout of its labels under this name
ESCAPED = re.compile("%(25|0A|0D)")  # bytes that are not UTF-8 stay escaped
PERIOD = re.compile(r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?[0-3]\d)?)?|[0-3]?\d[-_.][01]?\d[-_.](19|20)?\d\d")
LISTED = 10  # labels or folders in a message


@dataclass(frozen=True)
class FolderLayout:
    """How folders are read.

    Attributes:
        landing: The landing folder's table path.
        level: Which folder is the label: 1 for the first one below the landing folder or the split folder, 2 for the
            one below that; -1 for the folder that the file is in.
        merged: Whether labels that differ in case, surrounding spaces or Unicode form only are one label.
        given_splits: The splits that first-level folders give; empty if those folders are labels.
    """

    landing: str
    level: int = 1
    merged: bool = False
    given_splits: frozenset[str] = frozenset()

    def label(self, path: str) -> str | None:
        """The label that the file's folders give; None if it is in none at that level."""
        folders = self._folders(path)
        if folders and self.given_splits and to_split(folders[0]):
            folders = folders[1:]
        place = self.level if self.level < 0 else self.level - 1
        return self.merge(folders[place]) if -len(folders) <= place < len(folders) else None

    def given_split(self, path: str) -> str | None:
        """The split that the file's first-level folder gives; None if that is not a split folder."""
        folders = self._folders(path) if self.given_splits else []
        return to_split(folders[0]) if folders else None

    def merge(self, label: str) -> str:
        """The name that a label shares with those that it is merged with; unchanged if labels are not merged."""
        return normalized(label) if self.merged else label

    @property
    def missing_splits(self) -> tuple[str, ...]:
        """The splits that no folder gives, where some folder gives one; their images come from the training folder."""
        return tuple(split for split in SPLITS if self.given_splits and split not in self.given_splits)

    @property
    def code(self) -> int:
        """A number that changes with the labels and splits that the layout gives."""
        return crc32(json.dumps([self.level, self.merged, sorted(self.given_splits)]).encode())

    def __str__(self) -> str:
        where = {1: "the first-level folder", -1: "the folder of the file"}
        level = where.get(self.level) or f"the folder at level {self.level}"
        if not self.given_splits:
            return f"{level} is the label"
        text = f"first-level folders are splits ({', '.join(split for split in SPLITS if split in self.given_splits)})"
        if self.missing_splits:
            text += f", and {' and '.join(self.missing_splits)} images are taken from the training folder"
        return f"{text}; {level} below them is the label"

    def _folders(self, path: str) -> list[str]:
        return [to_folder_name(name) for name in folder_names(path, self.landing)]


def folder_names(path: str, landing: str) -> list[str]:
    """The folders from the landing folder to the file, escaped as in the path; `//` in an object's key is no folder."""
    below = path.removeprefix(f"{landing}/")
    return [] if below == path else [name for name in below.split("/")[:-1] if name]


def to_folder_name(name: str) -> str:
    """The folder's name on disk."""
    return ESCAPED.sub(lambda found: chr(int(found[1], 16)), name) if "%" in name else name


def to_split(folder: str) -> str | None:
    """The split that a folder of this name gives; case is ignored."""
    return SPLIT_FOLDERS.get(folder.strip().lower())


def normalized(label: str) -> str:
    """What labels have in common that differ in case, spaces around them or Unicode form only."""
    return unicodedata.normalize("NFC", " ".join(label.split()).lower())


def to_given_splits(paths: Iterable[str], landing: str, setting: str, before: frozenset[str]) -> frozenset[str]:
    """The splits that the first-level folders of these files give.

    With the setting `auto`, first-level folders are splits if all that hold images are named like splits, and at least
    two splits, training among them, are there. Once that was so `before`, a folder with another name does not change
    it: its files get a label, and a split like any image. `on` needs no more than one such folder; `off` never takes
    folders for splits.
    """
    folders = {names[0] for path in paths if (names := folder_names(path, landing))}
    splits = {to_split(to_folder_name(folder)) for folder in folders}
    given = frozenset(split for split in splits if split)
    if setting == "off":
        return frozenset()
    is_recognized = None not in splits and len(given) > 1 and "training" in given
    return given if setting == "on" or before or is_recognized else frozenset()


def read_layout(delta_tables: DeltaTables, image_folder: ImageFolder) -> FolderLayout:
    """The layout by the settings and by the splits that the last ingestion found."""
    return FolderLayout(
        image_folder.path,
        level=image_folder.label_level,
        merged=image_folder.merge_labels,
        given_splits=recorded_splits(delta_tables),
    )


def recorded_splits(delta_tables: DeltaTables) -> frozenset[str]:
    """The splits that the last ingestion found folders of."""
    if delta_tables.newest_version(IMAGE_FILES) is None:
        return frozenset()
    bits = delta_tables.transaction(IMAGE_FILES, GIVEN_SPLITS) or 0
    return frozenset(split for place, split in enumerate(SPLITS) if bits >> place & 1)


def record_splits(delta_tables: DeltaTables, image_folder: ImageFolder) -> bool:
    """Records which splits the folders of the current files give; returns whether that changed."""
    paths = one_path_per_folder(delta_tables)
    before = recorded_splits(delta_tables)
    now = to_given_splits(paths, image_folder.path, image_folder.split_folders, before)
    if now != before:
        bits = sum(1 << place for place, split in enumerate(SPLITS) if split in now)
        delta_tables.record_transaction(IMAGE_FILES, GIVEN_SPLITS, bits)
    return now != before


def one_path_per_folder(delta_tables: DeltaTables) -> list[str]:
    """The path of one current file in each folder: enough to tell what the folders give."""
    files = delta_tables.batches(IMAGE_FILES, ["path"], pc.field("state") == CURRENT)
    sql = "SELECT min(path) AS path FROM files GROUP BY regexp_replace(path, '/[^/]*$', '') ORDER BY path"
    return query(sql, files=files)["path"].to_pylist()


def is_recorded(delta_tables: DeltaTables, table: Table, layout: FolderLayout) -> bool:
    """Whether the table's labels and splits are those of the layout; tables without a record have the default one."""
    recorded = delta_tables.transaction(table, LAYOUT) if delta_tables.newest_version(table) is not None else None
    return layout.code == (FolderLayout(layout.landing).code if recorded is None else recorded)


def record_layout(delta_tables: DeltaTables, table: Table, layout: FolderLayout) -> None:
    """Records that the table's labels and splits are those of the layout."""
    if not is_recorded(delta_tables, table, layout):
        delta_tables.record_transaction(table, LAYOUT, layout.code)


def advice(paths: Sequence[str], layout: FolderLayout) -> list[str]:
    """What looks odd about the labels that the folders of these files give, and what to do about it."""
    labels = {label for path in paths if (label := layout.label(path))}
    splits = {split for label in labels if (split := to_split(label))}
    if not paths:
        return []
    if not labels:
        return [f"no file has a label ({layout}): {other_layout(paths, layout)}"]
    if len(labels) == 1:
        return [f"all files have one label, {labels.pop()!r}: {other_layout(paths, layout)}"]
    if all(map(PERIOD.fullmatch, labels)):
        return [f"the labels look like years or dates ({listed(labels)}): {other_layout(paths, layout)}"]
    if len(splits) > 1 and layout.level == 1 and not layout.given_splits:
        others = listed(label for label in labels if not to_split(label))
        exclude = f", or skip the other folders ({others}) with IMAGE_ASSETS_EXCLUDE" if others else ""
        return [
            f"labels are named like splits ({listed(filter(to_split, labels))}): set IMAGE_ASSETS_SPLIT_FOLDERS=on to "
            f"use them as splits{exclude}"
        ]
    if len(splits) > 1:
        return [f"labels are named like splits ({listed(filter(to_split, labels))}): {other_layout(paths, layout)}"]
    return []


def other_layout(paths: Sequence[str], layout: FolderLayout) -> str:
    """The setting that would give plausible labels for these files."""
    folders = [folder_names(path, layout.landing) for path in paths]
    first = {names[0] for names in folders if names}
    second = {to_split(names[1]) for names in folders if len(names) > 1}
    if len(first) == 1 and len(second - {None}) > 1:
        return f"set IMAGE_ASSETS_LANDING to its folder {to_folder_name(first.pop())!r}, whose folders are splits"
    for level in [*range(2, 1 + max(map(len, folders))), 1]:  # deeper levels first: the first one is the default
        labels = {label for path in paths if (label := replace(layout, level=level).label(path))}
        is_plausible = len(labels) > 1 and not all(map(PERIOD.fullmatch, labels)) and not any(map(to_split, labels))
        if level != layout.level and is_plausible:
            return f"set IMAGE_ASSETS_LABEL_LEVEL={level} if the labels are {listed(labels)}"
    return "put the photographs of each label into a folder of its own, or use a label table (IMAGE_ASSETS_LABELS)"


def same_but_for_spelling(labels: Iterable[str]) -> list[list[str]]:
    """The labels that differ in case, spaces around them or Unicode form only, in groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(labels)):
        groups[normalized(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def listed(names: Iterable[str]) -> str:
    """The first of the names in alphabetical order, and the number of the others."""
    every = sorted(names)
    more = [f"and {len(every) - LISTED:,} more"] if len(every) > LISTED else []
    return ", ".join([*every[:LISTED], *more])
