"""Pictures for people, as they appear in the metadata of a materialization."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from image_assets.images.pixels import UnreadableImage, to_thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIME_TYPES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}
MAX_BYTES = 100_000  # pictures are kept in Dagster's event log and loaded with every page that lists events
DOTS_PER_INCH = 100
GAP_PIXELS = 8
MIN_SIDE_PIXELS = 48
LINE_PIXELS = 15
CAPTION_LINES = 2
COLORS = {"": "#1f77b4", "validation_": "#ff7f0e"}


def picture_markdown(picture: bytes, caption: str) -> str:
    """A JPEG, PNG or SVG picture with its caption above, as markdown that needs no other file."""
    mime_type = next((name for start, name in MIME_TYPES.items() if picture.startswith(start)), None)
    if mime_type is None:
        raise ValueError(f"a picture beginning with {picture[:8]!r}: expected JPEG, PNG or SVG; convert it first")
    text = "".join(f"\\{letter}" if letter in r"\`*_[]<>#|" else letter for letter in " ".join(caption.split()))
    return f"{text}\n\n![{text}](data:{mime_type};base64,{b64encode(picture).decode()})"


def contact_sheet(images: Sequence[tuple[bytes, str]], side_pixels: int = 112, columns: int = 8) -> bytes:
    """Thumbnails in rows, each with its caption below, as one JPEG.

    An image that cannot be decoded is a gray box. The more images, the coarser and then the smaller they get:
    the sheet stays as wide, and near 100 KB.
    """
    sheet = _to_sheet(images, side_pixels, columns) if images else _nothing()
    for quality in (88, 75, 60, 45, 35):
        picture = BytesIO()
        sheet.save(picture, "JPEG", quality=quality, optimize=True)
        if picture.tell() <= MAX_BYTES:
            return picture.getvalue()
    if side_pixels <= MIN_SIDE_PIXELS:
        return picture.getvalue()
    return contact_sheet(images, side_pixels * 3 // 4, columns * 4 // 3)


def learning_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Loss and accuracy of each epoch, in training and validation, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_curves(axes, history, name)
    return to_png(figure)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """How many images of each true label (row) were given each predicted label (column), as PNG.

    The color is the share of the row. Above 20 labels the cells hold no numbers: they would not be legible.
    """
    from matplotlib.figure import Figure

    cells = np.asarray(counts).reshape(len(labels), len(labels))
    side_inches = min(max(3.6 + 0.3 * len(labels), 4.5), 9.6)
    figure = Figure(figsize=(side_inches, side_inches), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label if len(label) <= 20 else f"{label[:19]}…" for label in labels]
    size = 10 if len(labels) <= 12 else 8 if len(labels) <= 40 else 5
    plain = {"fontsize": size, "parse_math": False}  # a label may hold dollar signs
    axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(len(labels)), names, **plain)
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
    """How many images there are of each label, format, size (width, height) and length in bytes, as PNG.

    Above 30 labels their bars hold no names: they would not be legible.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplot_mosaic([["sizes", "sizes", "lengths"], ["labels", "labels", "formats"]])
    _draw_sizes(axes["sizes"], sizes)
    _draw_lengths(axes["lengths"], lengths)
    _draw_counts(axes["labels"], labels, "images of each label")
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
    """A logarithmic axis from below the lowest to above the highest value, with a few round numbers on it."""
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
        axes.set(xlabel=f"{len(names)} labels, the most frequent first")
        return
    short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    axes.set_xticks(
        range(len(names)), short, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False
    )


def _to_sheet(images: Sequence[tuple[bytes, str]], side_pixels: int, columns: int) -> Image.Image:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = side_pixels + GAP_PIXELS
    height = side_pixels + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
    sheet = Image.new("RGB", (columns * width + GAP_PIXELS, rows * height + GAP_PIXELS), "white")
    for index, (content, caption) in enumerate(images):
        left = GAP_PIXELS + index % columns * width
        top = GAP_PIXELS + index // columns * height
        _draw_tile(sheet, content, (left, top), side_pixels)
        text = "\n".join(_to_lines(caption, side_pixels))
        position = (left + side_pixels / 2, top + side_pixels + 3)
        ImageDraw.Draw(sheet).text(position, text, "#222222", _font(), anchor="ma", align="center", spacing=2)
    return sheet


def _draw_tile(sheet: Image.Image, content: bytes, corner: tuple[int, int], side_pixels: int) -> None:
    left, top = corner
    try:
        thumbnail = Image.open(BytesIO(to_thumbnail(content, side_pixels)))
    except UnreadableImage as error:
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((left, top, left + side_pixels - 1, top + side_pixels - 1), "#dddddd", "#aaaaaa")
        text = "\n".join(_to_lines(error.reason.replace("_", " "), side_pixels))
        center = (left + side_pixels / 2, top + side_pixels / 2)
        draw.text(center, text, "#777777", _font(), anchor="mm", align="center")
        return
    offset = ((side_pixels - thumbnail.width) // 2, (side_pixels - thumbnail.height) // 2)
    sheet.paste(thumbnail, (left + offset[0], top + offset[1]))


def _draw_curves(axes: "Axes", history: Sequence[Mapping[str, float]], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    for prefix, color in COLORS.items():
        values = [row.get(prefix + name, float("nan")) for row in history]
        # With markers, so that a single epoch shows.
        axes.plot(epochs, values, "o-", color=color, markersize=4, label="validation" if prefix else "training")
    axes.set(title=name, xlabel="epoch")
    axes.set_ylim(0, 1.02 if name == "accuracy" else 1.05 * axes.get_ylim()[1])
    axes.set_xlim(min(epochs, default=1) - 0.5, max(epochs, default=1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _to_lines(caption: str, width_pixels: int) -> list[str]:
    """The caption broken at spaces and slashes into lines that fit; what is too long ends in an ellipsis."""
    lines: list[str] = []
    for paragraph in caption.splitlines():
        line = ""
        for word in re.split(r"(?<=[ /])", paragraph):
            if line and _font().getlength((line + word).rstrip()) > width_pixels:
                lines.append(line.strip())
                line = ""
            line += word
        lines.append(line.strip())
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], " ".join(lines[CAPTION_LINES - 1 :])]
    return [_cut(line, width_pixels) for line in lines]


def _cut(line: str, width_pixels: int) -> str:
    if _font().getlength(line) <= width_pixels:
        return line
    while line and _font().getlength(f"{line}…") > width_pixels:
        line = line[:-1]
    return f"{line}…"


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font has Latin letters only. Matplotlib's is found without loading it, which takes most of a second.
    font = distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(font), 11)


def _nothing() -> Image.Image:
    sheet = Image.new("RGB", (240, 60), "white")
    ImageDraw.Draw(sheet).text((120, 30), "nothing to show", "#777777", _font(), anchor="mm")
    return sheet


def to_png(figure: "Figure") -> bytes:
    """A figure as a small PNG."""
    drawn, picture = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    # 256 colors are enough for lines and letters, and take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256).save(picture, "PNG", optimize=True)
    return picture.getvalue()


if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_BARS, SHOWN_PARTS = 60, 9
NAMED_BARS = 12  # of more, some names are left out
MAX_NAME_LENGTH = 20


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
    largest_parts = [(short(str(name)), parts[name].tolist()) for name in parts.columns if name in frequent]
    others = parts.drop(columns=frequent)
    return [*largest_parts, *([("others", others.sum(axis="columns").tolist())] if len(others.columns) else [])]


def short(name: str) -> str:
    """The name, cut where it is too long to stand beside a figure."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


def _name_bars(axes: "Axes", names: Sequence[str]) -> None:
    step = -(-len(names) // NAMED_BARS)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names), default=0) > 6 else {}
    axes.set_xticks(range(0, len(names), step), names[::step], parse_math=False, **slanted)
    room = 3 * (len(names) < 4)  # a bar as wide as the picture looks like none
    axes.set_xlim(-0.6 - room, len(names) - 0.4 + room)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
