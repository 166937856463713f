"""Labels that people corrected."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unicodedata import category

import dagster as dg

from image_assets.schemas import LABEL_CORRECTIONS, PREDICTED_FIRST
from resources.delta.delta_log import table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import file_layout
from resources.files.file_system import EPOCH

LISTED_CORRECTIONS = 20
MICROSECOND = timedelta(microseconds=1)
MAX_LABEL_BYTES = 255  # the limit for a folder name
# Unicode categories: control characters, halves of surrogate pairs, separators of lines and paragraphs. Others that
# print nothing are part of words, such as the joiners of Persian or of emoji.
NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}

ImageKey = tuple[str, str]  # path and image_id: different bytes at the same path are a different image


@dataclass(frozen=True)
class Correction:
    """One person's correction of one image; the fields are the columns of label_corrections."""

    path: str
    image_id: str
    label: str | None
    former_label: str | None
    corrected_by: str
    comment: str | None = None
    withdrawn: bool = False
    corrected_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def label_problem(label: str) -> str:
    """Why this cannot be the name of a label, and of its folder; empty if it can."""
    if not label or label != label.strip():
        return "it must not be empty or start or end with spaces"
    if "/" in label or label in (".", "..") or NOT_IN_NAMES.intersection(map(category, label)):
        return "it must be a valid folder name, without slashes and control characters"
    if len(label.encode()) > MAX_LABEL_BYTES:
        return f"it may have at most {MAX_LABEL_BYTES} bytes"
    return ""


def append_corrections(delta_tables: DeltaTables, corrections: Sequence[Correction]) -> None:
    """Appends corrections, in one commit; never changes rows, so several people can correct labels at once.

    Each gets a later time than earlier ones of its image, even if those were made while the clock was ahead.
    """
    delta_tables.create(LABEL_CORRECTIONS)
    latest = {(row["path"], row["image_id"]): row["corrected_at"] for row in newest_corrections(delta_tables)}
    rows = [
        asdict(one) | {"corrected_at": max(one.corrected_at, latest.get((one.path, one.image_id), EPOCH) + MICROSECOND)}
        for one in corrections
    ]
    files = write_files(rows, delta_tables.uri(LABEL_CORRECTIONS), file_layout(LABEL_CORRECTIONS))
    delta_tables.append_files(LABEL_CORRECTIONS, list(files))


def newest_corrections(delta_tables: DeltaTables) -> list[dict[str, Any]]:
    """The latest correction of each image, withdrawals included, newest first."""
    rows = delta_tables.read(LABEL_CORRECTIONS, LABEL_CORRECTIONS.columns.fieldNames()).to_pylist()
    rows.sort(key=lambda row: row["corrected_at"], reverse=True)
    newest: dict[ImageKey, dict[str, Any]] = {}
    for row in rows:
        newest.setdefault((row["path"], row["image_id"]), row)
    return list(newest.values())


@dg.asset(kinds={"deltalake"}, pool="label_corrections", op_tags=PREDICTED_FIRST)
def label_corrections(delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Labels corrected in the gallery; the latest correction of an image counts."""
    delta_tables.create(LABEL_CORRECTIONS)
    delta_tables.compact_without_spark(LABEL_CORRECTIONS)
    snapshot = delta_tables.snapshot(LABEL_CORRECTIONS)
    newest = newest_corrections(delta_tables)
    shown = [
        dg.TableRecord(
            {
                **{name: str(row[name] or "") for name in ("path", "former_label", "label", "corrected_by", "comment")},
                "corrected_at": f"{row['corrected_at']:%Y-%m-%d %H:%M:%S} UTC",
            }
        )
        for row in newest[:LISTED_CORRECTIONS]
    ]
    newest_first: dict[str, Any] = {"newest": dg.MetadataValue.table(shown)} if shown else {}
    return dg.MaterializeResult(
        metadata={
            **table_metadata(LABEL_CORRECTIONS, delta_tables.uri(LABEL_CORRECTIONS), snapshot),
            "corrected_images": sum(not row["withdrawn"] for row in newest),
            **newest_first,
        }
    )
