"""Charts, shown in the metadata of materializations."""

import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from image_assets.images.fonts import fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIME_TYPES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}
DOTS_PER_INCH = 100
SHOWN_BARS, SHOWN_PARTS = 60, 9
NAMED_BARS = 12  # with more bars, only every nth one is named
NAMED_ROWS = 100  # of a confusion matrix; the names of more would overlap, and take minutes to draw
MAX_NAME_LENGTH = 20
COLORS = {"": "#1f77b4", "validation_": "#ff7f0e"}


def picture_markdown(picture: bytes, caption: str) -> str:
    """Markdown with an embedded JPEG, PNG or SVG picture below its caption."""
    mime_type = next((name for start, name in MIME_TYPES.items() if picture.startswith(start)), None)
    if mime_type is None:
        raise ValueError(f"the picture starts with {picture[:8]!r}: expected JPEG, PNG or SVG; convert it first")
    text = "".join(f"\\{letter}" if letter in r"\`*_[]<>#|" else letter for letter in " ".join(caption.split()))
    return f"{text}\n\n![{text}](data:{mime_type};base64,{b64encode(picture).decode()})"


def learning_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """PNG of training and validation loss and accuracy by epoch.

    Epochs are counted over all parts of a training: the head, then fine-tuning. A line shows where a part begins.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_curves(axes, history, name)
    return to_png(figure)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """PNG of a confusion matrix: true labels in rows, predicted labels in columns.

    Colors are shares of the row. With more than 20 labels, cells have no numbers, which would be illegible; with more
    than NAMED_ROWS, only every nth row and column has its name.
    """
    from matplotlib.figure import Figure

    cells = np.asarray(counts).reshape(len(labels), len(labels))
    side_inches = min(max(3.6 + 0.3 * len(labels), 4.5), 9.6)
    figure = Figure(figsize=(side_inches, side_inches), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-len(labels) // NAMED_ROWS)
    named, names = range(0, len(labels), step), [short(label) for label in labels[::step]]
    size = 10 if len(labels) <= 12 else 8 if len(labels) <= 40 else 5
    plain = {"fontsize": size, "parse_math": False}  # a label may hold dollar signs
    axes.set_xticks(named, names, rotation=45, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(named, names, **plain)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.spines[:].set_visible(False)
    if len(labels) <= 20:
        for (row, column), count in np.ndenumerate(cells):
            color = "white" if shares[row, column] > 0.5 else "#222222" if count else "#bbbbbb"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
    return to_png(figure)


def distributions(
    *,
    labels: Mapping[str, int],
    formats: Mapping[str, int],
    sizes: Mapping[tuple[float, float], int],
    lengths: Mapping[float, int],
) -> bytes:
    """PNG of the number of images by label, format, size (width, height) and length in bytes.

    With more than 30 labels, bars have no names, which would be illegible.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplot_mosaic([["sizes", "sizes", "lengths"], ["labels", "labels", "formats"]])
    _draw_sizes(axes["sizes"], sizes)
    _draw_lengths(axes["lengths"], lengths)
    _draw_counts(axes["labels"], labels, "images per label")
    _draw_counts(axes["formats"], formats, "formats")
    for each in axes.values():
        each.spines[["top", "right"]].set_visible(False)
        each.set_axisbelow(True)
        each.grid(axis="y", alpha=0.3)
    return to_png(figure)


def _draw_sizes(axes: "Axes", sizes: Mapping[tuple[float, float], int]) -> None:
    most = max(sizes.values(), default=1)
    areas = [20 + 280 * count / most for count in sizes.values()]
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    axes.scatter(widths, heights, areas, color=COLORS[""], alpha=0.5, linewidths=0)
    axes.set(title="width and height", xlabel="pixels wide", ylabel="pixels high")
    _set_doublings(axes, "x", widths)
    _set_doublings(axes, "y", heights)


def _draw_lengths(axes: "Axes", lengths: Mapping[float, int]) -> None:
    starts = list(lengths)
    axes.bar(starts, list(lengths.values()), width=[0.16 * start for start in starts], color=COLORS[""])
    axes.set(title="file sizes", xlabel="bytes")
    _set_doublings(axes, "x", starts)


def _set_doublings(axes: "Axes", name: str, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with some room around the values and a few round numbers."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = min(values, default=1.0), max(values, default=1.0)
    axis = getattr(axes, f"{name}axis")
    getattr(axes, f"set_{name}scale")("log", base=2)
    getattr(axes, f"set_{name}lim")(low / 2, high * 2)
    axis.set_major_locator(LogLocator(base=2, numticks=6))
    axis.set_major_formatter(EngFormatter(sep="", places=0))
    axis.set_minor_formatter(NullFormatter())


def _draw_counts(axes: "Axes", counts: Mapping[str, int], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    names = sorted(counts, key=lambda name: (-counts[name], name))
    axes.bar(range(len(names)), [counts[name] for name in names], color=COLORS[""])
    axes.set_xlim(-0.5 - (len(names) < 4), len(names) - 0.5 + (len(names) < 4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title)
    if len(names) > 30:
        axes.set(xlabel=f"{len(names)} labels, most frequent first")
        return
    shown = [short(name) for name in names]
    axes.set_xticks(
        range(len(names)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False
    )


def _draw_curves(axes: "Axes", history: Sequence[Mapping[str, float]], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    # Each part counts its epochs from 1.
    begin = [0, *(place for place, row in enumerate(history) if place and row["epoch"] == 1)]
    parts = [range(*ends) for ends in zip(begin, [*begin[1:], len(history)], strict=True)]
    for prefix, color in COLORS.items():
        for part in parts:
            values = [history[place].get(prefix + name, float("nan")) for place in part]
            name_in_legend = "_" if part.start else "validation" if prefix else "training"  # with _: not in it
            # With markers, so that a single epoch shows.
            axes.plot([place + 1 for place in part], values, "o-", color=color, markersize=4, label=name_in_legend)
    for part in parts[1:]:
        axes.axvline(part.start + 0.5, color="#999999", linestyle=":")
    axes.set(title=name, xlabel="epoch")
    axes.set_ylim(0, 1.02 if name == "accuracy" else 1.05 * axes.get_ylim()[1])
    axes.set_xlim(0.5, max(len(history), 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def to_png(figure: "Figure") -> bytes:
    """A figure as a small PNG, with fonts that have the characters of its names."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    fonts = fonts_for("".join(text.get_text() for text in texts))
    for text in texts if len(fonts) > 1 else ():
        text.set_fontfamily([font.family for font in fonts])
    drawn, picture = BytesIO(), BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # one for each; fonts_for has warned
        figure.savefig(drawn, format="png")
    # 256 colors are enough for lines and letters, and take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def stacked_bars(parts: pd.DataFrame, title: str, *, top: float | None = None) -> bytes:
    """PNG of stacked bars: one bar per row, named by the index, with one part per column.

    Shows the last SHOWN_BARS rows and the largest SHOWN_PARTS columns; the other columns are summed up as "others".
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = parts.tail(SHOWN_BARS)
    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes, below = figure.subplots(), np.zeros(len(shown))
    colors = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue] - its stubs lack listed colors
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
    """Counts rows by label (most frequent first) and by the value of column `part`, for the given values."""
    counts = pd.crosstab(rows["label"], rows[part]).reindex(columns=list(parts), fill_value=0)
    frequent = counts.sum(axis="columns").sort_values(ascending=False, kind="stable").index
    return counts.loc[frequent[:SHOWN_BARS]]


def of_labels(title: str, labels: int) -> str:
    """The title of a chart of `by_label`, which says so if it leaves out labels."""
    return title if labels <= SHOWN_BARS else f"{title}: the {SHOWN_BARS} most frequent of {labels:,} labels"


def largest(parts: pd.DataFrame) -> list[tuple[str, Sequence[float]]]:
    """The columns with the largest sums, in their order, and the sum of the others."""
    frequent = parts.sum().sort_values(ascending=False, kind="stable").index[:SHOWN_PARTS]
    largest_parts = [(short(str(name)), parts[name].tolist()) for name in parts.columns if name in frequent]
    others = parts.drop(columns=frequent)
    return [*largest_parts, *([("others", others.sum(axis="columns").tolist())] if len(others.columns) else [])]


def short(name: str) -> str:
    """The name, truncated to fit beside a chart."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


def _name_bars(axes: "Axes", names: Sequence[str]) -> None:
    step = -(-len(names) // NAMED_BARS)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names), default=0) > 6 else {}
    axes.set_xticks(range(0, len(names), step), names[::step], parse_math=False, **slanted)
    room = 3 * (len(names) < 4)  # a bar as wide as the chart is not recognizable as one
    axes.set_xlim(-0.6 - room, len(names) - 0.4 + room)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
