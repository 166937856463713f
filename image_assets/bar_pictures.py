"""Bars in parts, as pictures for people: of days, or of labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from image_assets.pictures import DOTS_PER_INCH, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_BARS, SHOWN_PARTS = 60, 9
NAMED_BARS = 12  # of more, some names are left out
MOST_LETTERS = 20


def stacked_bars(parts: pd.DataFrame, title: str, *, top: float | None = None) -> bytes:
    """A bar for each row of the frame, named by its index, with a part for each column, as PNG.

    Of many rows the last are shown, of many columns those that are largest: the rest counts as others.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = parts.tail(SHOWN_BARS)
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes, below = figure.subplots(), np.zeros(len(shown))
    colors = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue] - its stubs know no listed colors
    for (name, values), color in zip(largest(shown), colors, strict=False):
        axes.bar(range(len(shown)), values, 0.9, bottom=below, color=color, label=name)
        below = below + np.asarray(values)
    axes.set(title=title, ylim=(0, top))
    if top is None:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for text in axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
        text.set_parse_math(False)  # a label may hold dollar signs
    _name_bars(axes, [short(str(name)) for name in shown.index])
    return to_png(figure)


def by_label(rows: pd.DataFrame, part: str, parts: Sequence[str]) -> pd.DataFrame:
    """How many rows with each label, the most frequent ones first, are of each part: those that a column names."""
    counts = pd.crosstab(rows["label"], rows[part]).reindex(columns=list(parts), fill_value=0)
    frequent = counts.sum(axis="columns").sort_values(ascending=False, kind="stable").index
    return counts.loc[frequent[:SHOWN_BARS]]


def largest(parts: pd.DataFrame) -> list[tuple[str, Sequence[float]]]:
    """The columns that are largest on the whole, in their order, and the sum of the others."""
    frequent = parts.sum().sort_values(ascending=False, kind="stable").index[:SHOWN_PARTS]
    kept = [(short(str(name)), parts[name].tolist()) for name in parts.columns if name in frequent]
    others = parts.drop(columns=frequent)
    return [*kept, *([("others", others.sum(axis="columns").tolist())] if len(others.columns) else [])]


def short(name: str) -> str:
    """The name, cut where it is too long to stand beside a figure."""
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"


def _name_bars(axes: "Axes", names: Sequence[str]) -> None:
    step = -(-len(names) // NAMED_BARS)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names), default=0) > 6 else {}
    axes.set_xticks(range(0, len(names), step), names[::step], parse_math=False, **slanted)
    room = 3 * (len(names) < 4)  # a bar as wide as the picture looks like none
    axes.set_xlim(-0.6 - room, len(names) - 0.4 + room)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
