"""The labels' numbers: a label keeps its own as others come."""

from collections.abc import Iterable

import pyarrow.compute as pc

from image_assets.schemas import FEATURED_IMAGES
from resources.thin_tables import ThinTables


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
