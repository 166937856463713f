"""Rows that were written before a label was corrected, brought up to it."""

import pyarrow.compute as pc

from image_assets.data.label_corrections import corrected_labels
from image_assets.data.label_numbers import known_labels, label_numbers
from resources.delta_tables import DeltaTables
from resources.tables import Table
from resources.thin_tables import ThinTables

LABELLED = ["path", "image_id", "label", "label_index"]
RELABELLED = "path string, image_id string, label string, label_index int"


def outdated(thin_tables: ThinTables, table: Table) -> list[tuple[str, str, str | None, int | None]]:
    """The rows of corrected images that have another label than counts now: path, image_id, the label, its number."""
    corrected = corrected_labels(thin_tables)
    if not corrected:
        return []
    numbers = label_numbers(filter(None, corrected.values()), known_labels(thin_tables))
    of_corrected = pc.field("image_id").isin([image_id for _, image_id in corrected])
    found = []
    for row in thin_tables.read(table, LABELLED, of_corrected).to_pylist():
        key = row["path"], row["image_id"]
        if key not in corrected:  # a copy of the image under another path
            continue
        label = corrected[key]
        number = numbers[label] if label else None
        if (label, number) != (row["label"], row["label_index"]):
            found.append((*key, label, number))
    return found


def relabel(delta_tables: DeltaTables, table: Table) -> int:
    """Give the rows of corrected images the labels that count now; how many had another one.

    Only the files with such rows are written again, in one commit: readers see all old labels or all new ones.
    """
    rows = outdated(delta_tables.thin, table)
    if rows:
        delta_tables.update(delta_tables.spark.createDataFrame(rows, RELABELLED), table, ["label", "label_index"])
    return len(rows)
