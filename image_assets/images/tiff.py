"""TIFF files: their pages, and pixels that Pillow does not read, such as floats, more than 8 bits or more bands.

This file stands alone: a copy is stored with every model version.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from .formats import RAW, TURNS, UnreadableImage, turned
from .value_range import SAMPLED_VALUES, ValueRange, find_range, to_8_bits

if TYPE_CHECKING:
    import tifffile

ORIENTATION, ICC_PROFILE = 274, 34675
LOWEST_VALUE, HIGHEST_VALUE = 340, 341  # SMinSampleValue, SMaxSampleValue
NO_DATA = 42113  # GDAL_NODATA
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOR_FILTERS = (32803, 34892)  # pixels of a camera raw file
SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
ALPHA = (1, 2)  # associated and unassociated; other extra samples, such as infrared, are not alpha
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
MAX_BYTES, MAX_TIMES_LENGTH = 2 * 1024**3, 20  # of pixels decoded at once; the greater one is the limit
THUMBNAIL_SHARE = 0.25  # a page with at most this share of the largest page's pixels is a thumbnail of another


@dataclass(frozen=True)
class TiffPage:
    """One page of a TIFF file."""

    page: "tifffile.TiffPage"
    index: int | None  # among the pages as Pillow counts them; None for one that Pillow does not count

    @property
    def width(self) -> int:
        return self.page.imagewidth

    @property
    def height(self) -> int:
        return self.page.imagelength

    @property
    def orientation(self) -> int:
        found = int(self._tag(ORIENTATION) or 1)
        return found if found in TURNS else 1

    @property
    def profile(self) -> bytes | None:
        return self._tag(ICC_PROFILE)

    @property
    def photometric(self) -> int:
        return int(self.page.photometric if self.page.photometric is not None else BLACK_IS_ZERO)

    @property
    def mode(self) -> str:
        """A name such as Pillow's: the colors, and the type if it has more than 8 bits."""
        name = "LAB" if self.photometric == LAB else MODES[self.samples]
        dtype = self.page.dtype
        wide = dtype is not None and dtype.itemsize > 1
        return f"{name};{dtype.itemsize * 8}{'F' if dtype.kind == 'f' else ''}" if dtype is not None and wide else name

    @property
    def samples(self) -> int:
        """How many samples of a pixel are its color, after its palette is applied."""
        if self.photometric == PALETTE:
            return 3
        wanted = SAMPLES.get(self.photometric, 1)
        return wanted if self.page.samplesperpixel >= wanted else 1

    @property
    def is_simple(self) -> bool:
        """Whether Pillow shows all of the page as it is meant: at most 8 bits, and no band but its colors and alpha."""
        page = self.page
        extra = page.samplesperpixel - SAMPLES.get(self.photometric, -1)
        return (
            self.index is not None
            and page.bitspersample <= 8
            and int(page.sampleformat) == 1
            and (extra == 0 or (extra == 1 and int(page.extrasamples[0]) in ALPHA))
        )

    @property
    def has_alpha(self) -> bool:
        extra = self.page.extrasamples
        return bool(extra) and int(extra[0]) in ALPHA and self.page.samplesperpixel > self.samples

    def require_complete(self, file: BinaryIO) -> None:
        """Raises a ValueError if the file lacks some of the page's pixels, which tifffile would leave black."""
        length = file.seek(0, os.SEEK_END)
        for offset, size in zip(self.page.dataoffsets, self.page.databytecounts, strict=False):
            if offset + size > length:
                raise ValueError(f"its pixels end at byte {offset + size:,}, the file at {length:,}: it is truncated")

    def require_few_samples(self, file: BinaryIO, count: int) -> None:
        """Raises UnreadableImage if a small file would decode to more samples than memory can hold."""
        length = file.seek(0, os.SEEK_END)
        size = count * (self.page.dtype.itemsize if self.page.dtype is not None else 1)
        limit = max(MAX_BYTES, MAX_TIMES_LENGTH * length)
        if size > limit:
            found = f"{size:,} bytes of pixels in a file of {length:,}: expected at most {limit:,}"
            raise UnreadableImage(f"{found}; save it with fewer bands or pixels", "too_many_pixels")

    def image(self, file: BinaryIO) -> tuple[Image.Image, ValueRange]:
        """The upright page with 8 bits per channel, and the values that became black and white."""
        self.require_complete(file)
        self.require_few_samples(file, max(self.page.size, math.prod(self.page.chunks)))
        values = self.page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (planes, height, width, samples), depth 0
        values = self._in_colors(np.moveaxis(values[..., 0], 0, 2) if len(values) > 1 else values[0])
        ranges = self._ranges([values[:, :, number] for number in range(self._kept)])
        pixels = np.stack([to_8_bits(values[:, :, number], of) for number, of in enumerate(ranges)], axis=2)
        return self._to_image(pixels), ranges[0]

    def smaller_image(self, file: BinaryIO, side_pixels: int) -> tuple[Image.Image, ValueRange]:
        """The same, downscaled by a whole number to the side or more, one strip or tile after the other."""
        self.require_complete(file)
        self.require_few_samples(file, math.prod(self.page.chunks))
        factor = max(1, max(self.width, self.height) // side_pixels)
        step = max(1, int((self.width * self.height / SAMPLED_VALUES) ** 0.5))
        samples: list[list[np.ndarray]] = [[] for _ in range(self._kept)]
        for values, sample, _, _ in self._segments():
            samples[sample].append(values[::step, ::step].reshape(-1))
        ranges = self._ranges([np.concatenate(values) for values in samples])
        sums = np.zeros((-(-self.height // factor), -(-self.width // factor), self._kept), np.int64)
        counts = np.zeros_like(sums)
        for values, sample, top, left in self._segments():
            pixels = to_8_bits(values, ranges[sample]).astype(np.int64)
            rows, columns = (_edges(start, of, factor) for start, of in zip((top, left), pixels.shape, strict=True))
            part = np.s_[
                top // factor : top // factor + len(rows), left // factor : left // factor + len(columns), sample
            ]
            sums[part] += np.add.reduceat(np.add.reduceat(pixels, rows, axis=0), columns, axis=1)
            counts[part] += np.outer(np.diff([*rows, len(pixels)]), np.diff([*columns, pixels.shape[1]]))
        return self._to_image((sums / np.maximum(counts, 1)).round().astype(np.uint8)), ranges[0]

    @property
    def _kept(self) -> int:
        """How many samples of a pixel are its color or alpha."""
        return self.samples + self.has_alpha

    def _segments(self) -> Iterator[tuple[np.ndarray, int, int, int]]:
        """The pixels (height, width) of one sample in each strip or tile: sample, and row and column of the corner."""
        for values, (plane, depth, top, left, _), shape in self.page.segments(maxworkers=1):
            if values is None or depth:  # a strip that was never written
                continue
            inside = values[0, : min(shape[1], self.height - top), : min(shape[2], self.width - left)]
            inside = self._in_colors(inside)
            for number in range(inside.shape[2]):
                if plane + number < self._kept:
                    yield inside[:, :, number], plane + number, top, left

    def _in_colors(self, values: np.ndarray) -> np.ndarray:
        """The samples (height, width, samples), with colors in place of numbers in a palette."""
        if self.photometric != PALETTE or self.page.colormap is None:
            return values
        return (self.page.colormap >> 8).astype(np.uint8).T[values[:, :, 0]]

    def _ranges(self, samples: list[np.ndarray]) -> list[ValueRange]:
        """The range of each sample: one for all colors, and that of alpha."""
        dtype = samples[0].dtype
        if self.photometric in (CMYK, LAB) and dtype.kind == "u":
            colors = ValueRange(0, float(np.iinfo(dtype).max))  # inks and coordinates, whose scale is fixed
        else:
            values = np.concatenate([of.reshape(-1) for of in samples[: self.samples]])
            bits = self.page.bitspersample
            are_fewer = isinstance(bits, int) and bits < dtype.itemsize * 8 and self.photometric != PALETTE
            bits = bits if are_fewer else None
            colors = find_range(values, bits=bits, declared=self._declared(), no_data=self._no_data())
        colors = colors.inverted if self.photometric == WHITE_IS_ZERO else colors
        return [colors] * self.samples + [find_range(alpha) for alpha in samples[self.samples :]]

    def _to_image(self, pixels: np.ndarray) -> Image.Image:
        """The upright image of samples with 8 bits: (height, width, samples)."""
        height, width, _ = pixels.shape
        colors = np.ascontiguousarray(pixels[:, :, : self.samples])
        if self.photometric == LAB:
            image = Image.frombytes("LAB", (width, height), colors.tobytes())
        elif self.has_alpha and self.samples == 3:
            associated = int(self.page.extrasamples[0]) == ALPHA[0]
            image = Image.frombytes("RGBa" if associated else "RGBA", (width, height), pixels.tobytes())
            image = image.convert("RGBA")
        else:
            image = Image.frombytes(MODES[self.samples], (width, height), colors.tobytes())
            if self.has_alpha and self.samples == 1:
                image.putalpha(Image.fromarray(np.ascontiguousarray(pixels[:, :, 1])))
        return turned(image, self.orientation)

    def _declared(self) -> ValueRange | None:
        lowest, highest = self._tag(LOWEST_VALUE), self._tag(HIGHEST_VALUE)
        if highest is None:
            return None
        return ValueRange(float(np.min(lowest if lowest is not None else 0)), float(np.max(highest)))

    def _no_data(self) -> float | None:
        try:
            return float(str(self._tag(NO_DATA)).strip(" \0"))
        except ValueError:
            return None

    def _tag(self, number: int):  # noqa: ANN202 - its type depends on the tag
        tag = self.page.tags.get(number)
        return None if tag is None else tag.value


def pages_of(file: BinaryIO) -> list[TiffPage]:
    """The pages of a TIFF file, without thumbnails, reduced copies and masks.

    Raises:
        UnreadableImage: It is a camera raw file.
    """
    import tifffile

    file.seek(0)
    found: dict[int, TiffPage] = {}
    for number, page in enumerate(tifffile.TiffFile(file).pages):
        if page.offset in found:  # directories in a circle
            break
        found[page.offset] = TiffPage(page.aspage(), number)
    pages = list(found.values())
    inner = [TiffPage(page.aspage(), None) for outer in pages for page in outer.page.pages or ()]
    if any(page.photometric in COLOR_FILTERS for page in (*pages, *inner)):
        raise UnreadableImage(f"it is a camera raw file (DNG, NEF, ARW or the like): {RAW}", "not_an_image")
    whole = [page for page in pages if not page.page.is_reduced and not page.page.is_mask]
    whole = whole or [page for page in inner if not page.page.is_reduced] or pages
    largest = max((page.width * page.height for page in whole), default=0)
    return [page for page in whole if page.width * page.height > THUMBNAIL_SHARE * largest]


def _edges(start: int, length: int, factor: int) -> list[int]:
    """Where in `length` pixels that begin at `start` the blocks of `factor` pixels begin."""
    return [0, *range(factor - start % factor, length, factor)]
