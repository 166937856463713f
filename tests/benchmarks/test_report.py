"""Tests of the result tables: medians, ratios, slopes, and failures."""

from pathlib import Path

import pytest

from benchmarks.contest import FORMER, OURS, RECIPE
from benchmarks.contest_report import contest_table
from benchmarks.figure import draw
from benchmarks.report import ratios, report
from benchmarks.results import Spread, extrapolated, rates, slope


def run(work_seconds: float, error: str | None = None, **answer: object) -> dict:
    peak = {"driver": 1 << 20, "together": 3 << 20}
    answer = {"work_seconds": work_seconds, **answer}
    return {"seconds": work_seconds + 2, "cpu_seconds": 4.0, "peak_bytes": peak, "answer": answer, "error": error}


@pytest.fixture
def ingested() -> dict:
    """Three contestants with results, one without."""
    runs = {
        OURS: [run(seconds, parts={"append raw_images": seconds / 2}) for seconds in (1, 2, 4)],
        RECIPE: [run(8), run(8), run(9)],
        "Daft": [run(4), run(4), run(4)],
        "Ray Data": [run(0, error="Traceback\nnot installed: no wheel | none")],
    }
    return {"count": 1000, "bytes": 58_000_000, "runs": runs}


@pytest.fixture
def followed() -> dict:
    """Two sizes, one step that grows and one that does not."""
    runs = {
        str(size): [run(seconds, steps={"raw_images": seconds - 1, "image_splits": 1.0}, parts={"compact": 0.01})]
        for size, seconds in ((1000, 5.0), (101_000, 6.0))
    }
    return {"count": 101_000, "new": 100, "runs": runs, "recipe": {"1000": [run(10)], "5000": [run(30)]}}


def test_figures_are_medians_with_their_spread(ingested: dict) -> None:
    assert rates(ingested)[OURS] == Spread(500, 250, 1000)
    assert f"{Spread(1.25, 1, 2):.1f}" == "1.2 (1.0 to 2.0)"


def test_a_table_has_a_row_for_everybody_and_says_who_could_not_run(ingested: dict) -> None:
    table = contest_table(ingested).splitlines()
    assert len(table) == 2 + 4
    assert table[2].startswith(f"| {OURS} | 500 (250 to 1,000) | 4.0 | 2.0 |")
    assert "| Ray Data | not installed: no wheel / none |" in table[5]


def test_ratios_are_to_the_recipe_and_to_the_best_peer(ingested: dict, followed: dict) -> None:
    found = [ratio for _, ratio, _ in ratios({"ingest": ingested, "following": followed})]
    # Recipe: 30 s for 5,000 images and 5 s per 1,000 more, so 510 s for 101,000, compared with our 6 s.
    # In total time, each run takes two seconds longer.
    assert found == ["4.0", "2.00", "1.50", "1.20", "85", "64"]


def test_an_earlier_commit_competes_but_is_no_peer(ingested: dict, followed: dict) -> None:
    ingested["runs"][FORMER] = [run(1), run(1), run(1)]
    followed["former"] = {size: [run(12, steps={}, parts={})] for size in followed["runs"]}
    found = {compared: ratio for compared, ratio, _ in ratios({"ingest": ingested, "following": followed})}
    assert found[f"ingest: images/s, relative to {FORMER}"] == "0.50"
    assert found["ingest: images/s, relative to the best peer (Daft)"] == "2.00"
    assert found[f"following: the time of {FORMER} for 101,000 images, relative to ours"] == "2.00"
    assert f"| {FORMER}, s | 12.0 (12.0 to 12.0) | 12.0 (12.0 to 12.0) |" in report({"following": followed})


def test_a_slope_is_what_so_many_more_images_cost() -> None:
    assert slope({1_000: 5.0, 10_000: 0.0, 101_000: 6.0}) == pytest.approx(1.0)
    assert extrapolated({1_000: 10.0, 5_000: 30.0}, 100_000) == pytest.approx(505.0)


def test_the_page_says_where_our_time_goes(ingested: dict) -> None:
    assert "| `append raw_images` | 1.0 |" in report({"ingest": ingested})


def test_an_earlier_commit_that_never_ran_has_no_row(followed: dict) -> None:
    assert FORMER not in report({"following": followed})


def test_each_section_ends_with_what_it_was_measured_on(ingested: dict, followed: dict) -> None:
    page = report({"ingest": {**ingested, "conditions": "Measured on A."}, "following": followed})
    ingest, following = page.split("## Following")
    assert ingest.endswith("\n\nMeasured on A.\n\n")
    assert "Measured on" not in following, "its results were saved without"


def test_the_picture_is_drawn(ingested: dict, followed: dict, tmp_path: Path) -> None:
    draw({"ingest": ingested, "following": followed}, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")
