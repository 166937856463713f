"""The ledger: the history that it keeps."""

from datetime import UTC, datetime, timedelta

import pytest

from image_assets.data.image_files import Decision, Known, read_known, record, to_microseconds
from image_assets.data.judging import CURRENT, MISSING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta_tables import DeltaTables

NOON = datetime(2026, 6, 1, 12, 0, 0, 123457, UTC)


def test_times_are_compared_in_whole_microseconds() -> None:
    for microseconds in (0, 1, 1_767_323_045_678_901, 4_000_000_000_999_999):
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        assert to_microseconds(time) == microseconds


@pytest.mark.spark
def test_the_ledger_keeps_what_a_decision_leaves_out_and_counts_the_attempts(delta_tables: DeltaTables) -> None:
    first = Decision("file:/a.png", QUARANTINED, "empty", "0 bytes", "1d", 10, NOON)
    record(delta_tables, [first, Decision("file:/b.png", CURRENT, image_id="2e", length=5, modification_time=NOON)])
    (seen,) = delta_tables.read(IMAGE_FILES).where("path = 'file:/a.png'").collect()
    record(delta_tables, [Decision("file:/a.png", MISSING)])
    record(delta_tables, [])
    assert delta_tables.version(IMAGE_FILES) == 2
    (gone,) = delta_tables.read(IMAGE_FILES).where("path = 'file:/a.png'").collect()
    assert gone.asDict() == {**seen.asDict(), "state": MISSING, "last_seen": gone.last_seen}
    assert gone.last_seen > seen.last_seen
    record(delta_tables, [Decision("file:/a.png", CURRENT, image_id="3f", length=11, modification_time=NOON)])
    (back,) = delta_tables.read(IMAGE_FILES).where("path = 'file:/a.png'").collect()
    assert (back.reason, back.message, back.attempts, back.first_seen) == (None, None, 2, seen.first_seen)
    assert read_known(delta_tables.thin) == {
        "file:/a.png": Known(CURRENT, None, "3f", to_microseconds(NOON), 11),
        "file:/b.png": Known(CURRENT, None, "2e", to_microseconds(NOON), 5),
    }
