"""What people say that images are, where their folder is wrong."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from image_assets.schemas import LABEL_CORRECTIONS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table_layout import file_layout
from resources.delta.table_metadata import table_metadata

LISTED_CORRECTIONS = 20
MAX_LABEL_BYTES = 255  # as many as a folder's name may have

ImageKey = tuple[str, str]  # path and image_id: other bytes under the path are another image


@dataclass(frozen=True)
class Correction:
    """What a person says of one image; the fields are the columns of label_corrections."""

    path: str
    image_id: str
    label: str | None
    former_label: str | None
    corrected_by: str
    comment: str | None = None
    withdrawn: bool = False
    corrected_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if self.label is not None and label_problem(self.label):
            raise ValueError(f"{self.label[:80]!r} is no label: {label_problem(self.label)}")


def label_problem(label: str) -> str:
    """Why no folder, and so no label, can be called like this; empty when one can."""
    if not label or label != label.strip():
        return "expected letters, and no space around them"
    if len(label.encode()) > MAX_LABEL_BYTES:
        return f"expected at most {MAX_LABEL_BYTES} bytes"
    if "/" in label or label in (".", "..") or not label.isprintable():
        return "expected the name of a folder, without slashes and control characters"
    return ""


def append_corrections(delta_tables: DeltaTables, corrections: Sequence[Correction]) -> None:
    """Keep corrections, in one commit; nothing that is there is changed, so that several people may do so at once."""
    delta_tables.create(LABEL_CORRECTIONS)
    rows = map(asdict, corrections)
    files = write_files(rows, delta_tables.uri(LABEL_CORRECTIONS), file_layout(LABEL_CORRECTIONS))
    delta_tables.append_files(LABEL_CORRECTIONS, list(files))


def newest_corrections(delta_tables: DeltaTables) -> list[dict[str, Any]]:
    """The row of each corrected image that counts, also where it takes corrections back; the newest first."""
    rows = delta_tables.read(LABEL_CORRECTIONS, LABEL_CORRECTIONS.columns.fieldNames()).to_pylist()
    rows.sort(key=lambda row: row["corrected_at"], reverse=True)
    newest: dict[ImageKey, dict[str, Any]] = {}
    for row in rows:
        newest.setdefault((row["path"], row["image_id"]), row)
    return list(newest.values())


@dg.asset(kinds={"deltalake"}, pool="label_corrections")
def label_corrections(delta_tables: DeltaTables) -> dg.MaterializeResult:
    """Labels that people corrected in the gallery: each correction once, the newest one of an image counts."""
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
