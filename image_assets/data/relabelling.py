"""Rows that were written before their label was corrected or given, brought up to it."""

import pyarrow.compute as pc

from image_assets.data.label_numbers import known_labels, label_numbers
from image_assets.data.said_labels import said_labels
from resources.delta_tables import DeltaTables
from resources.tables import Table
from resources.thin_tables import ThinTables

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
