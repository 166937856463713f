"""The results as one chart."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contest import OURS, RECIPE
from benchmarks.results import parts_by_size, rates

INK, GRAY, OWN, OTHER = "#222222", "#8a8f98", "#1f6fb2", "#b9c3cf"
TITLES = {"ingest": "Ingest", "grayscale": "Grayscale", "featured": "Features"}
PANELS = (*TITLES, "following")
SHOWN_STEPS = 6


def draw(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw the available results: one panel per contest, and one for following."""
    panels = [name for name in PANELS if name in results]
    if not panels:
        return
    figure = Figure(figsize=(11, 1.2 + 2.9 * len(panels)), facecolor="white", layout="constrained")
    for panel, axes in zip(panels, figure.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        if panel == "following":
            draw_following(results[panel], axes)
        else:
            draw_rates(results[panel], TITLES[panel], axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=10)
    figure.savefig(file, dpi=130)


def draw_rates(found: dict[str, Any], title: str, axes: Axes) -> None:
    """Images per second for every contestant, ours highlighted."""
    rate = rates(found)
    names = sorted(rate, key=lambda name: rate[name].median)
    colors = [OWN if name == OURS else GRAY if name == RECIPE else OTHER for name in names]
    middles = [rate[name].median for name in names]
    spread = [
        [rate[name].median - rate[name].lowest for name in names],
        [rate[name].highest - rate[name].median for name in names],
    ]
    axes.barh(names, middles, xerr=spread, color=colors, ecolor=INK, capsize=3, error_kw={"linewidth": 1})
    for place, name in enumerate(names):
        axes.text(rate[name].highest, place, f"  {rate[name].median:,.0f}", va="center", fontsize=10, color=INK)
    axes.set_xlim(0, 1.12 * max(spread.highest for spread in rate.values()))
    axes.set_title(f"{title}: images per second on two cores, {found['count']:,} photographs", loc="left", color=INK)


def draw_following(found: dict[str, Any], axes: Axes) -> None:
    """Seconds per step of a run for new files, for every table size."""
    steps = parts_by_size(found, "steps")
    costly = sorted(steps, key=lambda name: -max(steps[name].values()))
    sizes = sorted(int(size) for size in found["runs"])
    left = [0.0] * len(sizes)
    rows = {name: [steps[name].get(size, 0.0) for size in sizes] for name in costly[:SHOWN_STEPS]}
    rows["other steps"] = [sum(steps[name].get(size, 0.0) for name in costly[SHOWN_STEPS:]) for size in sizes]
    palette = ["#1f6fb2", "#5b9bd1", "#9cc3e5", "#e0a458", "#c9784a", "#8c6bb1", OTHER]
    for (name, seconds), color in zip(rows.items(), palette, strict=False):
        axes.barh([f"{size:,}" for size in sizes], seconds, left=left, label=name, color=color)
        left = [before + more for before, more in zip(left, seconds, strict=True)]
    axes.set_title(
        f"Following: seconds for {found['new']} new files, by number of images in the tables", loc="left", color=INK
    )
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
