"""A benchmark ticks a sensor as Dagster's daemon does."""

import sys
from pathlib import Path

from benchmarks.measurement import measured
from benchmarks.photographs import SMALL, write
from benchmarks.sensor import TICKS


def test_new_files_are_requested_once_and_then_awaited(tmp_path: Path) -> None:
    landing, home = tmp_path / "3", tmp_path / "home"  # named by its number of files
    (home / "dagster").mkdir(parents=True)
    write(SMALL, landing, range(3))
    run = measured([sys.executable, "-m", "benchmarks.sensor", "sensor", str(landing), str(home), ""])
    assert run.error is None
    assert run.answer["asked"] == [1, 1]  # for the three files, and for the hundred that came later
    assert (len(run.answer["quiet"]), len(run.answer["new"])) == (TICKS, TICKS)
