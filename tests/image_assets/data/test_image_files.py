"""The ledger: the history that it keeps."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from image_assets.data.image_files import Decision, Known, read_known, record, to_microseconds
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta.table import Snapshot
from resources.delta.thin_tables import ThinTables

NOON = datetime(2026, 6, 1, 12, 0, 0, 123457, UTC)


def test_times_are_compared_in_whole_microseconds() -> None:
    for microseconds in (0, 1, 1_767_323_045_678_901, 4_000_000_000_999_999):
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        assert to_microseconds(time) == microseconds


def row_of(thin_tables: ThinTables, path: str) -> dict[str, Any]:
    (row,) = thin_tables.read(IMAGE_FILES, IMAGE_FILES.columns.fieldNames(), pc.field("path") == path).to_pylist()
    return row


def test_the_ledger_keeps_what_a_decision_leaves_out_and_counts_the_attempts(tmp_path: Path) -> None:
    ledger = ThinTables(root=str(tmp_path / "a home"))
    first = Decision("file:/a.png", QUARANTINED, "empty", "0 bytes", "1d", 10, NOON)
    record(ledger, [first, Decision("file:/b.png", CURRENT, image_id="2e", length=5, modification_time=NOON)])
    seen = row_of(ledger, "file:/a.png")
    record(ledger, [Decision("file:/a.png", MISSING)])
    record(ledger, [])
    assert ledger.snapshot(IMAGE_FILES) == Snapshot(rows=2, version=2)
    gone = row_of(ledger, "file:/a.png")
    assert gone == {**seen, "state": MISSING, "last_seen": gone["last_seen"]}
    assert gone["last_seen"] > seen["last_seen"]
    record(ledger, [Decision("file:/a.png", CURRENT, image_id="3f", length=11, modification_time=NOON)])
    back = row_of(ledger, "file:/a.png")
    assert back == {**back, "reason": None, "message": None, "attempts": 2, "first_seen": seen["first_seen"]}
    assert read_known(ledger) == {
        "file:/a.png": Known(CURRENT, None, "3f", to_microseconds(NOON), 11),
        "file:/b.png": Known(CURRENT, None, "2e", to_microseconds(NOON), 5),
    }
