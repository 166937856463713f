"""Contest results as tables: all contestants, and where our own time goes."""

from collections.abc import Sequence
from typing import Any

from benchmarks.contest import OURS, RECIPE
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import Spread, good, median_parts, peak_megabytes, rates, start_seconds, total_seconds

WORTH_SHOWING = 0.1  # seconds; parts that never take this long are left out


def contest_table(found: dict[str, Any]) -> str:
    """One row per contestant: rate, startup, total time, CPU time and memory, or why it has no result."""
    rate = rates(found)
    recipe = rate.get(RECIPE)
    head = ["", "images/s", "relative to the recipe", "start and stop, s", "total, s", "CPU s / 1,000", "peak MB"]
    rows = []
    for name, runs in found["runs"].items():
        if name not in rate:
            rows.append([name, to_cell(runs[0]["error"]), *[""] * 5])
            continue
        rows.append(
            [
                name,
                f"{rate[name]:,.0f}",
                f"{rate[name].median / recipe.median:.1f}" if recipe else "",
                f"{start_seconds(runs):.1f}",
                f"{total_seconds(runs):.1f}",
                f"{Spread.of([run['cpu_seconds'] for run in good(runs)]).median / found['count'] * 1000:.1f}",
                f"{peak_megabytes(runs):,.0f}",
            ]
        )
    return markdown(head, rows)


def project_parts(found: dict[str, Any]) -> str:
    """Seconds per part of our own run, longest first."""
    parts = median_parts(found["runs"][OURS], "parts")
    by_cost = sorted(parts, key=lambda name: -parts[name])
    rows = [[f"`{name}`", f"{parts[name]:.1f}"] for name in by_cost if parts[name] >= WORTH_SHOWING]
    return markdown(["where our time goes", "s"], rows) if rows else ""


def total_ratio(benchmark: str, runs: dict[str, list[dict]], peers: Sequence[str], least: str) -> tuple[str, str, str]:
    """The total time of the peer that ends first, from its command to its end, relative to ours."""
    total = {name: total_seconds(runs[name]).median for name in (OURS, *peers)}
    best = min(peers, key=lambda name: total[name])
    compared = f"{benchmark}: total time of the peer that ends first ({best}), relative to ours"
    return compared, f"{total[best] / total[OURS]:.2f}", least
