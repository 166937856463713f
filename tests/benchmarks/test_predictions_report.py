"""Tests of the figures of predictions and promotions: ratios, parts, and failures."""

import pytest

from benchmarks.contest import OURS, RECIPE
from benchmarks.predictions_report import (
    predictions_ratios,
    predictions_section,
    promotion_ratios,
    promotion_section,
)
from benchmarks.report import report


def run(answer: dict, error: str | None = None) -> dict:
    peak = {"driver": 1 << 20, "together": 3 << 20}
    return {"seconds": 30.0, "cpu_seconds": 50.0, "peak_bytes": peak, "answer": answer, "error": error}


def predicted(*seconds: float) -> list[dict]:
    return [run({"work_seconds": of, "first_seconds": 4.0, "parts": {"follow": of}}) for of in seconds]


def moved(scored: int, **moments: float) -> dict:
    return {"seconds": moments["current"], "scored": scored, "moments": moments}


@pytest.fixture
def raced() -> dict:
    """All contestants in one framework, one of which could not run; only ours in the other."""
    missing = [run({}, error="not installed: no wheel")]
    torch = {RECIPE: predicted(100), OURS: predicted(20, 25, 30), "Daft": predicted(40), "Ray Data": missing}
    return {
        "count": 1000,
        "first": 64,
        "bytes": 58_000_000,
        "runs": {"torch": torch, "tensorflow": {OURS: predicted(50)}},
    }


@pytest.fixture
def promoted() -> dict:
    """A promotion and a rollback at two sizes."""

    def at(factor: int) -> dict:
        start = {"registry": 0.5, "sensor": 1.0, "process": 6.0, "resources": 10.0}
        new = moved(1000 * factor, **start, first=20.0, last=10.0 + 10 * factor, current=11.0 + 10 * factor)
        return run({"promotion": new, "rollback": moved(0, **start, current=14.0 + factor)})

    loaded = [run({"load": {"seconds": 7.0}})]
    return {"count": 10_000, "runs": {"1000": [at(1)] * 3, "10000": [at(10)] * 3}, "loaded": loaded}


def test_ours_is_compared_to_the_recipe_and_to_the_best_peer(raced: dict) -> None:
    assert [(of.split(":")[0], ratio) for of, ratio, _ in predictions_ratios(raced)] == [
        ("predictions, PyTorch", "4.0"),
        ("predictions, PyTorch", "1.60"),
        ("predictions, PyTorch", "1.00"),  # in total time
    ]


def test_everybody_has_a_row_with_the_start_apart(raced: dict) -> None:
    table = predictions_section(raced)
    assert f"| {OURS}, PyTorch | 40 (33 to 50) | 4.0 | 4.0 (4.0 to 4.0) | 30.0 (30.0 to 30.0) | 50.0 | 3 |" in table
    assert "| Ray Data, PyTorch | not installed: no wheel |" in table
    assert f"| {OURS}, TensorFlow | 20 (20 to 20) |  | 4.0" in table
    assert "| `follow` | 25.0 |" in table


def test_a_promotion_is_told_part_by_part(promoted: dict) -> None:
    section = promotion_section(promoted)
    assert "| **promotion, total** | 21.0 (21.0 to 21.0) | 111.0 (111.0 to 111.0) |" in section
    assert "| the run's process starts | 5.0 | 5.0 |" in section
    assert "| `image_predictions`: until the last new rows | 0.0 | 90.0 |" in section
    assert "loads the new version takes 7.0 (7.0 to 7.0) s" in section
    rollback = section.partition("| rollback, s |")[2]
    assert "| images scored | 0 | 0 |" in rollback
    assert "| `current_predictions` | 5.0 | 14.0 |" in rollback
    assert "first new rows" not in rollback


def test_a_rollback_is_compared_by_the_number_of_images(promoted: dict) -> None:
    assert [ratio for _, ratio, _ in promotion_ratios(promoted)] == ["24.0", "1.60"]
    promoted["runs"]["1000"] = [run({}, error="killed")]
    assert promotion_ratios(promoted) == []
    assert "1,000 images: killed" in promotion_section(promoted)


def test_the_page_has_a_section_for_each(raced: dict, promoted: dict) -> None:
    page = report({"predictions": raced, "promotion": promoted})
    assert [line for line in page.splitlines() if line.startswith("## ")][1:3] == [
        "## Predictions: from images to a table of labels and probabilities",
        "## Promotion: switch to another version, then roll back",
    ]
