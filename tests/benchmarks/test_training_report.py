"""Tests of the figures of loaders and trainings: epochs, ratios, limits, and failures."""

import pytest

from benchmarks.contest import RECIPE
from benchmarks.loader import LIMITS, LOADERS
from benchmarks.loader_report import loader_ratios, loader_section
from benchmarks.report import report
from benchmarks.training import AGAIN, FIRST
from benchmarks.training_report import (
    accuracy_section,
    processes_ratios,
    processes_section,
    training_ratios,
    training_section,
)


def run(answer: dict, error: str | None = None) -> dict:
    peak = {"driver": 1 << 20, "together": 3 << 20}
    return {"seconds": 9.0, "cpu_seconds": 4.0, "peak_bytes": peak, "answer": answer, "error": error}


def fed(first: float, second: float) -> dict:
    """A loader's run with these seconds for its two epochs of a thousand images."""
    epochs = [{"seconds": seconds, "cpu_seconds": 2 * seconds, "images": 1000} for seconds in (first, second)]
    return run({"work_seconds": first, "epochs": epochs})


def trained(*seconds: float) -> dict:
    """A training's run whose epochs ended after these seconds."""
    epochs = [{"seconds": end, "validation_accuracy": 0.9 - 0.1 / end} for end in seconds]
    return run({"work_seconds": seconds[-1], "epochs": epochs})


@pytest.fixture
def loaded() -> dict:
    """Two of our caches, two other loaders, one of which could not run, and the limits."""
    original, _, pixels, torch, _, web, _ = (loader.name for loader in LOADERS)
    runs = {original: [fed(2, 0.1)], pixels: [fed(0.5, 0.1)], torch: [fed(4, 4)]}
    runs |= {web: [run({}, error="not installed: no wheel")]}
    runs |= {LIMITS[0].name: [fed(0.5, 0.5)], LIMITS[1].name: [fed(1.5, 1.5)]}
    return {
        "count": 1000,
        "bytes": 58_000_000,
        "runs": runs,
        "preparations": {original: [run({"work_seconds": 3.0})]},
    }


@pytest.fixture
def taught() -> dict:
    """The recipe and ours in one framework."""
    runs = {RECIPE: [trained(20, 40, 60, 80, 100)], FIRST: [trained(10, 10.5)], AGAIN: [trained(1, 2)]}
    return {"count": 2500, "runs": {"torch": runs}}


@pytest.fixture
def distributed() -> dict:
    """One process and two, at two table sizes."""

    def runs_with(rate: float, megabytes: int) -> list[dict]:
        answer = {"work_seconds": 9.0, "embedded_images_per_second": rate, "rank_bytes": megabytes << 20}
        return [run(answer)]

    runs = {
        "1": {"500": runs_with(80, 700), "5000": runs_with(80, 720)},
        "2": {"500": runs_with(100, 600), "5000": runs_with(120, 660)},
    }
    return {"count": 5000, "runs": runs}


def test_loaders_are_compared_epoch_by_epoch_to_the_best_of_the_others(loaded: dict) -> None:
    assert [ratio for _, ratio, _ in loader_ratios(loaded)] == ["2.00", "8.00", "40.00", "40.00"]


def test_a_loader_that_could_not_run_is_said_and_limits_are_added_up(loaded: dict) -> None:
    table = loader_section(loaded).splitlines()
    assert any("not installed: no wheel" in line for line in table)
    assert "| 500 (500 to 500) | 10,000 (10,000 to 10,000) | 3.0 (3.0 to 3.0) | 4.00 and 0.20 | 3 |" in table[6]
    assert table[-1].startswith("| both limits, one after the other | 500 |")


def test_trainings_are_compared_by_the_time_to_their_end(taught: dict) -> None:
    assert [ratio for _, ratio, _ in training_ratios(taught)] == ["9.5", "50.0"]
    assert "| 100.0 (100.0 to 100.0) | 0.899 (0.899 to 0.899) | 5 | 20.0 | 20.00 |" in training_section(taught)


def test_processes_are_compared_on_the_larger_tables(distributed: dict) -> None:
    assert [ratio for _, ratio, _ in processes_ratios(distributed)] == ["1.50", "1.10"]
    distributed["runs"]["1"]["5000"] = [run({}, error="killed")]
    assert [ratio for _, ratio, _ in processes_ratios(distributed)] == ["1.10"]
    assert "| 1 | 5,000 | killed |" in processes_section(distributed)


def test_a_training_begins_soon_where_nothing_is_new() -> None:
    def versions(*answers: dict) -> list[dict]:
        same = {"validation_accuracy": 0.9, "seconds": 60.0}
        return [run(same | answer) for answer in answers]

    first = {"test_accuracy": 0.91, "caches_written": 2, "embedded_images": 2000, "epoch_ends": [70.0, 70.1]}
    again = {"test_accuracy": 0.93, "caches_written": 0, "embedded_images": 0, "epoch_ends": [15.0, 15.1]}
    head = versions(first | {"fine_tuning_seconds": []}, again | {"fine_tuning_seconds": []})
    tuned = versions(again | {"fine_tuning_seconds": [9.0, 8.0, 10.0]})
    section = accuracy_section({"count": 2500, "runs": {"torch": {"head": head, "top blocks": tuned}}}).splitlines()
    accuracies = "0.920 (0.910 to 0.930) | 0.900 (0.900 to 0.900)"
    assert f"| head | PyTorch | {accuracies} |  | 60 (60 to 60) | 15.0 (15.0 to 15.0) |" in section
    assert section[-1].startswith("| top blocks | PyTorch | 0.930 (0.930 to 0.930) | 0.900 (0.900 to 0.900) | 9.0 |")


def test_the_page_has_a_section_for_each(loaded: dict, taught: dict, distributed: dict) -> None:
    page = report({"loader": loaded, "training": taught, "processes": distributed})
    assert [line for line in page.splitlines() if line.startswith("## ")][1:4] == [
        "## Loader: batches of 32 images of 224 x 224, two epochs",
        "## Training: from caches to a trained model",
        "## Processes: one or two on the same cores",
    ]
