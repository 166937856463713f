"""The labels that count in place of folders': people's corrections, and before there is one the label table's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from image_assets.data.label_corrections import Image, newest_corrections
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.delta.thin_tables import ThinTables


def label_numbers(new: Iterable[str], numbered: dict[str, int]) -> dict[str, int]:
    """Every label's number: those that have one keep it, new ones get the next, in alphabetical order."""
    first = max(numbered.values(), default=-1) + 1
    unnumbered = sorted(set(new) - set(numbered))
    return numbered | {label: number for number, label in enumerate(unnumbered, first)}


def known_labels(thin_tables: ThinTables) -> dict[str, int]:
    """The labels of featured_images with their numbers."""
    columns = ["label", "label_index"]
    rows = thin_tables.read(FEATURED_IMAGES, columns, pc.field("label").is_valid()).group_by(columns).aggregate([])
    return dict(zip(rows["label"].to_pylist(), rows["label_index"].to_pylist(), strict=True))


@dataclass(frozen=True)
class SaidLabels:
    """What is said of images by people, and of files by the label table; None: they have no label."""

    corrected: Mapping[Image, str | None]
    given: Mapping[str, str | None]

    def __bool__(self) -> bool:
        return bool(self.corrected or self.given)

    def of(self, image: Image, otherwise: str | None) -> str | None:
        """The label of an image (path, image_id); `otherwise` where nobody says one."""
        return self.corrected[image] if image in self.corrected else self.given.get(image[0], otherwise)


def given_by_path(thin_tables: ThinTables) -> dict[str, str | None]:
    """What given_labels says of each file; nothing of any where there never was a label table."""
    rows = thin_tables.read(GIVEN_LABELS, ["path", "label"])
    return dict(zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True))


def said_labels(thin_tables: ThinTables) -> SaidLabels:
    """All that is said now. A correction that was taken back is its folder's label, unless a table gives one."""
    given = given_by_path(thin_tables)
    corrected = {
        (row["path"], row["image_id"]): row["label"]
        for row in newest_corrections(thin_tables)
        if not (row["withdrawn"] and row["path"] in given)
    }
    return SaidLabels(corrected, given)


LABELLED = ["path", "image_id", "label", "label_index"]
RELABELLED = "path string, image_id string, label string, label_index int"


def outdated(thin_tables: ThinTables, table: Table) -> list[tuple[str, str, str | None, int | None]]:
    """The rows of images that have another label than counts now: path, image_id, the label, its number."""
    said = said_labels(thin_tables)
    if not said:
        return []
    of_corrected = pc.field("image_id").isin([image_id for _, image_id in said.corrected])
    rows = thin_tables.read(table, LABELLED, None if said.given else of_corrected)
    columns = [column.to_pylist() for column in rows.columns]
    before = {(path, image_id): now for path, image_id, *now in zip(*columns, strict=True)}
    labels = {image: said.of(image, label) for image, (label, _) in before.items()}
    numbers = label_numbers(filter(None, labels.values()), known_labels(thin_tables))
    now = {image: [label, numbers[label] if label else None] for image, label in labels.items()}
    return [(*image, *now[image]) for image in before if now[image] != before[image]]


def relabel(delta_tables: DeltaTables, table: Table) -> int:
    """Give the rows of images the labels that count now; how many had another one.

    Only the files with such rows are written again, in one commit: readers see all old labels or all new ones.
    """
    rows = outdated(delta_tables.thin, table)
    if rows:
        delta_tables.update(delta_tables.spark.createDataFrame(rows, RELABELLED), table, ["label", "label_index"])
    return len(rows)


def to_label(path: str, landing: str) -> str | None:
    """The first sub-folder below the landing folder; None for a file directly in it or outside of it."""
    below = path.removeprefix(f"{landing}/")
    if below == path or "/" not in below:
        return None
    return below.partition("/")[0].replace("%25", "%")  # as the folder is called
