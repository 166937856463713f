"""Labels and confidence, day by day, as pictures."""

import pandas as pd

from image_assets.bar_pictures import NAMED_BARS, SHOWN_BARS, stacked_bars
from image_assets.pictures import COLORS, DOTS_PER_INCH, to_png
from image_assets.predictions.drift_figures import shares_by_day


def label_shares(days: pd.DataFrame) -> bytes:
    """The share of each label on each day, stacked, as PNG; rare labels count as others."""
    return stacked_bars(shares_by_day(days).set_axis(day_names(days)), "share of each label", top=1)


def day_names(days: pd.DataFrame) -> list[str]:
    """The days as they stand below a picture."""
    return [f"{day:%d %b}" for day in days["day"]]


def confidence(days: pd.DataFrame) -> bytes:
    """How sure the version was on each day, and how far answers and images were from those that it knows, as PNG."""
    from matplotlib.figure import Figure

    shown = days.tail(SHOWN_BARS)
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    lines = {"mean_probability": COLORS[""], "unsure_share": COLORS["validation_"], "answer_distance": "#2ca02c"}
    lines["embedding_distance"] = "#9467bd"
    for name, color in lines.items():
        axes.plot(range(len(shown)), shown[name].astype(float), "o-", color=color, markersize=4, label=name)
    axes.set(title="confidence", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    step = -(-len(shown) // NAMED_BARS)
    axes.set_xticks(range(0, len(shown), step), day_names(shown)[::step])
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)
