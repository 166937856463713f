"""The rows of a label table that is written as a mapping."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from image_assets.data.given_labels import LabelRow, label_rows
from resources.delta.external_table import ExternalRows, ExternalTable

LANDING = "file:/photos"


def rows_of(table: Mapping[str, Sequence[str | None]], **columns: str) -> list[LabelRow]:
    """The rows of a table of these columns; `columns` are settings of the table."""
    rows = ExternalRows(pa.table(table), "", "", range(2, 2 + len(next(iter(table.values())))))
    return [*label_rows(rows, ExternalTable(**columns), LANDING)]
