"""Benchmark results, stored as JSON, and the medians, ratios and slopes computed from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.photographs import CACHE

RESULTS = CACHE / "results"
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Spread:
    """The median, lowest and highest of several figures."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: list[float]) -> "Spread":
        """The spread of at least one figure."""
        return cls(median(figures), min(figures), max(figures))

    def __format__(self, digits: str) -> str:
        return f"{self.median:{digits}} ({self.lowest:{digits}} to {self.highest:{digits}})"


def save(benchmark: str, found: dict[str, Any]) -> Path:
    """Save a benchmark's results, replacing earlier ones."""
    file = RESULTS / f"{benchmark}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1))
    return file


def read_results() -> dict[str, dict[str, Any]]:
    """The latest results of every benchmark."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def good(runs: list[dict]) -> list[dict]:
    """The runs without an error."""
    return [run for run in runs if not run["error"]]


def rates(found: dict[str, Any]) -> dict[str, Spread]:
    """Images per second, excluding startup, for every contestant that finished."""
    return {
        name: Spread.of([found["count"] / run["answer"]["work_seconds"] for run in good(runs)])
        for name, runs in found["runs"].items()
        if good(runs)
    }


def work_seconds(runs: list[dict]) -> Spread:
    """Seconds of the work, excluding startup."""
    return Spread.of([run["answer"]["work_seconds"] for run in good(runs)])


def total_seconds(runs: list[dict]) -> Spread:
    """Seconds from the command to its end, startup included."""
    return Spread.of([run["seconds"] for run in good(runs)])


def start_seconds(runs: list[dict]) -> float:
    """Median seconds for starting and stopping."""
    return median(run["seconds"] - run["answer"]["work_seconds"] for run in good(runs))


def peak_megabytes(runs: list[dict], role: str = "together") -> float:
    """The peak memory of the processes over all runs."""
    return max(run["peak_bytes"].get(role, 0) for run in good(runs)) / MEBIBYTE


def parts_by_size(found: dict[str, Any], kind: str) -> dict[str, dict[int, float]]:
    """Median seconds of each step or part, by the size of the tables."""
    by_size = {int(size): median_parts(runs, kind) for size, runs in found["runs"].items() if good(runs)}
    names = {name: None for parts in by_size.values() for name in parts}
    return {name: {size: parts.get(name, 0.0) for size, parts in by_size.items()} for name in names}


def median_parts(runs: list[dict], kind: str) -> dict[str, float]:
    """Median seconds of each step or part; 0 for a run that did not have it."""
    taken = [run["answer"].get(kind, {}) for run in good(runs)]
    return {name: median(parts.get(name, 0.0) for parts in taken) for name in {name for one in taken for name in one}}


def slope(by_size: dict[int, float], more: int = 100_000) -> float:
    """Additional seconds for `more` images in the tables, from the smallest to the largest size."""
    smallest, largest = min(by_size), max(by_size)
    return (by_size[largest] - by_size[smallest]) / (largest - smallest) * more


def extrapolated(by_size: dict[int, float], size: int) -> float:
    """The value at `size` on the straight line through the smallest and the largest size."""
    return by_size[max(by_size)] + slope(by_size, 1) * (size - max(by_size))
