"""Labels and confidence, day by day, as pictures."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from image_assets.pictures import COLORS, DOTS_PER_INCH, to_png
from image_assets.predictions.drift_figures import shares_by_day

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_DAYS, SHOWN_LABELS = 60, 9


def label_shares(days: pd.DataFrame) -> bytes:
    """The share of each label on each day, stacked, as PNG; rare labels count as others."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = days.tail(SHOWN_DAYS)
    shares = shares_by_day(shown)
    frequent = sorted(shares, key=lambda label: -shares[label].mean())[:SHOWN_LABELS]
    parts = {label if len(label) <= 20 else f"{label[:19]}…": shares[label].to_numpy() for label in frequent}
    if len(shares.columns) > len(frequent):
        parts["others"] = shares.drop(columns=frequent).sum(axis=1).to_numpy()
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes, below = figure.subplots(), np.zeros(len(shown))
    for (name, values), color in zip(parts.items(), colormaps["tab10"].colors, strict=False):  # pyright: ignore[reportAttributeAccessIssue] - its stubs know no listed colors
        axes.bar(range(len(shown)), values, 0.9, bottom=below, color=color, label=name)
        below = below + values
    axes.set(title="share of each label", ylim=(0, 1))
    for text in axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
        text.set_parse_math(False)  # a label may hold dollar signs
    _set_days(axes, shown)
    return to_png(figure)


def confidence(days: pd.DataFrame) -> bytes:
    """How sure the version was on each day, and how far answers and images were from those that it knows, as PNG."""
    from matplotlib.figure import Figure

    shown = days.tail(SHOWN_DAYS)
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    lines = {"mean_probability": COLORS[""], "unsure_share": COLORS["validation_"], "answer_distance": "#2ca02c"}
    lines["embedding_distance"] = "#9467bd"
    for name, color in lines.items():
        axes.plot(range(len(shown)), shown[name].astype(float), "o-", color=color, markersize=4, label=name)
    axes.set(title="confidence", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _set_days(axes, shown)
    return to_png(figure)


def _set_days(axes: "Axes", days: pd.DataFrame) -> None:
    step = -(-len(days) // 10)
    axes.set_xticks(range(0, len(days), step), [f"{day:%d %b}" for day in days["day"].iloc[::step]])
    axes.spines[["top", "right"]].set_visible(False)
