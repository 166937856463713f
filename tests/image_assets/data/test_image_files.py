"""The ledger: the history that it keeps."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from image_assets.data.image_files import (
    EXCLUDED,
    FAILED_TWICE,
    RETRY_UNREADABLE_AFTER,
    SEEN_BEFORE,
    UNREADABLE_FILE,
    Decision,
    Ledger,
    LedgerEntry,
    merge_decisions,
    read_ledger,
    read_seen_before,
    remove_seen_before,
    to_microseconds,
)
from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Snapshot
from tests.support.tables import pass_time, tables_at

NOON = datetime(2026, 6, 1, 12, 0, 0, 123457, UTC)


def test_times_are_compared_in_whole_microseconds() -> None:
    for microseconds in (0, 1, 1_767_323_045_678_901, 4_000_000_000_999_999):
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        assert to_microseconds(time) == microseconds


def row_of(delta_tables: DeltaTables, path: str) -> dict[str, Any]:
    (row,) = delta_tables.read(IMAGE_FILES, IMAGE_FILES.columns.fieldNames(), pc.field("path") == path).to_pylist()
    return row


def test_the_ledger_keeps_what_a_decision_leaves_out_and_counts_the_attempts(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path / "a home")
    first = Decision("file:/a.png", QUARANTINED, "empty", "0 bytes", "1d", 10, NOON)
    merge_decisions(ledger, [first, Decision("file:/b.png", CURRENT, image_id="2e", length=5, modification_time=NOON)])
    seen = row_of(ledger, "file:/a.png")
    merge_decisions(ledger, [Decision("file:/a.png", MISSING)])
    merge_decisions(ledger, [])
    assert ledger.snapshot(IMAGE_FILES) == Snapshot(rows=2, version=2)
    gone = row_of(ledger, "file:/a.png")
    assert gone == {**seen, "state": MISSING, "last_seen": gone["last_seen"]}
    assert gone["last_seen"] > seen["last_seen"]
    merge_decisions(ledger, [Decision("file:/a.png", CURRENT, image_id="3f", length=11, modification_time=NOON)])
    back = row_of(ledger, "file:/a.png")
    assert back == {**back, "reason": None, "message": None, "attempts": 2, "first_seen": seen["first_seen"]}
    assert read_ledger(ledger) == {
        "file:/a.png": LedgerEntry(CURRENT, None, "3f", to_microseconds(NOON), 11),
        "file:/b.png": LedgerEntry(CURRENT, None, "2e", to_microseconds(NOON), 5),
    }


def test_a_file_that_is_excluded_is_missing_with_a_reason(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path / "a home")
    merge_decisions(ledger, [Decision("file:/a.png", CURRENT, image_id="1d"), Decision("file:/b.png", CURRENT)])
    merge_decisions(ledger, [Decision("file:/a.png", MISSING, EXCLUDED, "skipped"), Decision("file:/b.png", MISSING)])
    rows = [row_of(ledger, path) for path in ("file:/a.png", "file:/b.png")]
    assert [(row["state"], row["reason"], row["message"]) for row in rows] == [
        (MISSING, EXCLUDED, "skipped"),
        (MISSING, None, None),
    ]


def test_a_mark_is_removed_from_files_that_still_have_it_and_nothing_else_changes(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path / "a home")
    names = ("seen", "replaced", "missing", "quarantined", "new")
    marked = [
        Decision(name, CURRENT, None, None if name == "new" else SEEN_BEFORE, f"id of {name}", 9, NOON)
        for name in names
    ]
    merge_decisions(ledger, marked)
    merge_decisions(ledger, [Decision("missing", MISSING), Decision("quarantined", QUARANTINED, "empty", "0 bytes")])
    found = read_seen_before(ledger)
    assert sorted(found) == [("replaced", "id of replaced"), ("seen", "id of seen")]
    merge_decisions(ledger, [Decision("replaced", CURRENT, None, SEEN_BEFORE, "another id", 9, NOON)])
    before = {name: row_of(ledger, name) for name in names}
    remove_seen_before(ledger, found)
    assert read_seen_before(ledger) == [("replaced", "another id")]
    now = {name: row_of(ledger, name) for name in names}
    assert now == before | {"seen": {**before["seen"], "message": None, "last_seen": now["seen"]["last_seen"]}}
    version = ledger.snapshot(IMAGE_FILES).version
    remove_seen_before(ledger, found)
    assert ledger.snapshot(IMAGE_FILES).version == version


def test_a_result_that_may_lie_in_the_machine_is_retried_once(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path / "a home")

    def decide(state: str, reason: str | None = None, message: str | None = None, image_id: str = "1d") -> bool:
        """Whether the file is retried after this decision."""
        merge_decisions(ledger, [Decision("file:/a.png", state, reason, message, image_id, 10, NOON)])
        return read_ledger(ledger)["file:/a.png"].retry

    assert not decide(CURRENT)
    assert decide(QUARANTINED, "timeout", "too slow")
    assert not decide(QUARANTINED, "out_of_memory", "too large")
    row = row_of(ledger, "file:/a.png")
    assert (row["message"], row["attempts"]) == (f"too large{FAILED_TWICE}", 3)
    assert not decide(QUARANTINED, "decoder_crash", "SIGSEGV"), "not even after a replay"
    assert not decide(MISSING)
    assert decide(QUARANTINED, "timeout", "too slow"), "it was copied again"
    assert not decide(CURRENT, None, SEEN_BEFORE)
    assert not decide(QUARANTINED, "timeout", "too slow"), "decoded by raw_images, but not by featured_images"
    assert decide(QUARANTINED, "timeout", "too slow", image_id="2e"), "other bytes"
    assert not decide(QUARANTINED, "undecodable", "cut short", image_id="2e")


def test_a_file_that_could_not_be_read_is_retried_once_after_a_while(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path / "a home")

    def fail(time: datetime = NOON) -> tuple[bool, bool]:
        """Whether the file is retried after another failure, at once and later."""
        unreadable = Decision("file:/a.png", QUARANTINED, UNREADABLE_FILE, "Input/output error", None, 10, time)
        merge_decisions(ledger, [unreadable])
        now = read_ledger(ledger)["file:/a.png"].retry
        pass_time(ledger, RETRY_UNREADABLE_AFTER)
        return now, read_ledger(ledger)["file:/a.png"].retry

    assert fail() == (False, True)
    assert fail() == (False, False)
    assert fail() == (False, False), "not even after a replay"
    assert fail(NOON + timedelta(seconds=1)) == (False, True), "it was copied again"
    merge_decisions(ledger, [Decision("file:/a.png", CURRENT, None, None, "1d", 10, NOON)])
    assert [fail(), fail()] == [(False, True), (False, False)], "though its image_id is known"


ENTRIES = {
    "file:/a.png": LedgerEntry(CURRENT, None, "1d", 5, 10),
    "file:/b.png": LedgerEntry(QUARANTINED, "timeout", "2e", 6, 11, retry=True),
    "file:/c": LedgerEntry(QUARANTINED, "unreadable_folder", None, None, None),
}


def test_the_ledger_in_columns_has_the_same_entries() -> None:
    ledger = Ledger.of(ENTRIES)
    assert ledger == ENTRIES
    assert Ledger.of(ledger) is ledger
    assert ledger.named(["file:/c", "file:/a.png", "file:/d.png"]) == {
        path: ENTRIES[path] for path in ("file:/a.png", "file:/c")
    }
    assert ledger.is_in_state(CURRENT, MISSING).tolist() == [True, False, False]
    new = Decision("file:/d.png", CURRENT, image_id="3f", length=7, modification_time=NOON)
    recorded = ledger.recorded([Decision("file:/a.png", MISSING), new])
    assert {path: entry.state for path, entry in recorded.items()} == {
        **{"file:/a.png": MISSING, "file:/b.png": QUARANTINED, "file:/c": QUARANTINED, "file:/d.png": CURRENT}
    }
    assert recorded["file:/d.png"] == LedgerEntry(CURRENT, None, "3f", to_microseconds(NOON), 7)
    assert Ledger.of({}).recorded([new]) == {"file:/d.png": recorded["file:/d.png"]}
    assert Ledger.of({}).named(["file:/a.png"]) == {}


def test_new_files_are_appended_to_the_ledger_without_writing_its_files_again(tmp_path: Path) -> None:
    ledger = tables_at(tmp_path)
    first, before = [Decision(f"file:/{number:03}", CURRENT, image_id="1d") for number in range(0, 100, 2)], set()
    for decisions in (first, [Decision(f"file:/{number:03}", CURRENT, image_id="1d") for number in range(1, 100, 2)]):
        merge_decisions(ledger, decisions)
        files = {file.url for file in table_files(ledger.uri(IMAGE_FILES)).files}
        assert before < files
        before = files
    merge_decisions(ledger, [Decision("file:/007", MISSING), Decision("file:/100", PENDING)])
    after = {file.url for file in table_files(ledger.uri(IMAGE_FILES)).files}
    assert len(before - after) == 1, "the file that holds the changed row"
    states = Counter(entry.state for entry in read_ledger(ledger).values())
    assert states == {CURRENT: 99, MISSING: 1, PENDING: 1}
