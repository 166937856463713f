"""Which label an image has: a correction, else the label table, else its folders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from image_assets.data.folder_layout import FolderLayout, is_recorded, record_layout
from image_assets.data.label_corrections import ImageKey, newest_corrections
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table

LABEL_COLUMNS = ["path", "image_id", "label", "label_index"]


def extend_label_indexes(new: Iterable[str], existing: dict[str, int]) -> dict[str, int]:
    """All labels with their numbers: existing ones keep theirs, new ones follow in alphabetical order."""
    first = max(existing.values(), default=-1) + 1
    added = sorted(set(new) - set(existing))
    return existing | {label: number for number, label in enumerate(added, first)}


def read_label_indexes(delta_tables: DeltaTables) -> dict[str, int]:
    """The labels of featured_images with their numbers."""
    columns = ["label", "label_index"]
    rows = delta_tables.read(FEATURED_IMAGES, columns, pc.field("label").is_valid()).group_by(columns).aggregate([])
    return dict(zip(rows["label"].to_pylist(), rows["label_index"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Labels:
    """Labels by correction, by label table and by folder; None means that the image has no label."""

    corrected: Mapping[ImageKey, str | None]
    given: Mapping[str, str | None]
    layout: FolderLayout

    @property
    def are_overridden(self) -> bool:
        """Whether some images have a label by a correction or a label table."""
        return bool(self.corrected or self.given)

    def of(self, image: ImageKey) -> str | None:
        """The label of an image (path, image_id)."""
        if image in self.corrected:
            label = self.corrected[image]
        elif image[0] in self.given:
            label = self.given[image[0]]
        else:
            return self.layout.label(image[0])
        return label and self.layout.merge(label)


def given_by_path(delta_tables: DeltaTables) -> dict[str, str | None]:
    """The label in given_labels for each path; empty if there never was a label table."""
    rows = delta_tables.read(GIVEN_LABELS, ["path", "label"])
    return dict(zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True))


def read_labels(delta_tables: DeltaTables, layout: FolderLayout) -> Labels:
    """The labels as they are now; a withdrawn correction gives an image the label of the table, else of its folders."""
    given = given_by_path(delta_tables)
    corrected = {
        (row["path"], row["image_id"]): layout.label(row["path"]) if row["withdrawn"] else row["label"]
        for row in newest_corrections(delta_tables)
        if not (row["withdrawn"] and row["path"] in given)
    }
    return Labels(corrected, given, layout)


def outdated_labels(
    delta_tables: DeltaTables, table: Table, layout: FolderLayout
) -> list[tuple[str, str, str | None, int | None]]:
    """The images whose label changed: path, image_id, current label, label index.

    Labels that folders give change with the layout only, so that all rows are read only if the table's labels are
    those of another one.
    """
    current = read_labels(delta_tables, layout)
    is_same_layout = is_recorded(delta_tables, table, layout)
    if is_same_layout and not current.are_overridden:
        return []
    of_corrected = pc.field("image_id").isin([image_id for _, image_id in current.corrected])
    some = of_corrected if is_same_layout and not current.given else None
    rows = delta_tables.read(table, LABEL_COLUMNS, some)
    columns = [column.to_pylist() for column in rows.columns]
    before = {(path, image_id): now for path, image_id, *now in zip(*columns, strict=True)}
    labels = {image: current.of(image) for image in before}
    numbers = extend_label_indexes(filter(None, labels.values()), read_label_indexes(delta_tables))
    now = {image: [label, numbers[label] if label else None] for image, label in labels.items()}
    return [(*image, *now[image]) for image in before if now[image] != before[image]]


def relabel(delta_tables: DeltaTables, table: Table, layout: FolderLayout) -> int:
    """Updates outdated labels and returns how many there were.

    Only files with such rows are rewritten, in one commit: readers see all old labels or all new ones.
    """
    rows = outdated_labels(delta_tables, table, layout)
    if rows:
        delta_tables.update([dict(zip(LABEL_COLUMNS, row, strict=True)) for row in rows], table, LABEL_COLUMNS[2:])
    record_layout(delta_tables, table, layout)
    return len(rows)
