"""Which pixel values become black and white, for images with more than 8 bits.

This file stands alone: a copy is stored with every model version.
"""

import math
from typing import NamedTuple

import numpy as np

# Whole numbers are taken as values of the smallest of these that holds them. A camera with 12 bits writes values up to
# 4095, whether into 16-bit or 32-bit integers or into floats.
BIT_DEPTHS = (8, 10, 12, 14, 15, 16)
MAX_BITS = 64
FULL_SHARE = 0.25  # values above this share of 0 to 1, or of all 31 or 32 bits, span all of it
OUTLIER_SHARE = 0.001  # of the pixels at each end: hot and dead pixels do not decide
MIN_VALUES = 1000  # with fewer, a single pixel is not an outlier
SAMPLED_VALUES = 1_000_000
NO_DATA = 1e30  # beyond it, floats mark missing values
BAND_VALUES = 4_000_000  # converted at once, which bounds the memory


class ValueRange(NamedTuple):
    """The pixel values that become black and white; black is above white where zero means white."""

    black: float
    white: float

    @property
    def inverted(self) -> "ValueRange":
        """The same range of an image in which the lowest value means white."""
        return ValueRange(self.white, self.black)

    @property
    def is_usable(self) -> bool:
        """Whether white is above black, and not infinitely far."""
        return 0 < self.white - self.black < math.inf


BYTES = ValueRange(0.0, 255.0)


def find_range(
    values: np.ndarray, *, bits: int | None = None, declared: ValueRange | None = None, no_data: float | None = None
) -> ValueRange:
    """The values that become black and white: those that the file declares, or else those of its pixels.

    Whole numbers from 0 span the smallest of BIT_DEPTHS that holds them, so that the same values look the same in
    every type. Floats in 0..1 span 0..1. Other values span from their 0.1 % to their 99.9 % percentile.

    Args:
        values: Pixels of any shape and type.
        bits: The bits that the file says are used, if less than its type has.
        declared: Black and white as the file declares them.
        no_data: The value that marks missing pixels.
    """
    if values.dtype in (np.uint8, np.bool_):
        bits = min(bits or 8, 8) if values.dtype == np.uint8 else 1
        return ValueRange(0.0, 2.0**bits - 1)
    if declared and declared.is_usable and declared != _type_range(values.dtype):
        return declared
    valid = _valid(sampled(values), no_data)
    if not valid.size:
        return ValueRange(0, 1)
    low, high = _robust_ends(valid)
    if low >= 0 and _is_whole(valid):
        if bits and bits <= MAX_BITS and high < 2**bits:
            return ValueRange(0, 2**bits - 1)
        for depth in BIT_DEPTHS:
            if high < 2**depth:
                return ValueRange(0, 2**depth - 1)
        full = float(np.iinfo(values.dtype).max) if np.issubdtype(values.dtype, np.integer) else 2.0**32 - 1
        return ValueRange(0, full) if high > FULL_SHARE * full else ValueRange(low, high)
    if low >= 0 and FULL_SHARE < high <= 1:
        return ValueRange(0, 1)
    return ValueRange(low, high) if high > low else ValueRange(low, low + 1)


def sampled(values: np.ndarray) -> np.ndarray:
    """Some of the values, evenly spread over all: at most about SAMPLED_VALUES."""
    flat = values.reshape(-1)
    step = -(-flat.size // SAMPLED_VALUES)
    return flat[:: step + (step % 2 == 0)]  # an odd step does not hit the same column of each row


def to_8_bits(values: np.ndarray, found: ValueRange) -> np.ndarray:
    """The pixels as uint8 of the same shape, from black 0 to white 255; NaN is black."""
    if values.dtype == np.uint8 and found == BYTES:
        return values
    result = np.empty(values.shape, np.uint8)
    exact = np.float64 if values.dtype.itemsize > 2 and values.dtype != np.float32 else np.float32
    black, scale = exact(found.black), exact(255 / (found.white - found.black))
    rows = max(1, BAND_VALUES // max(1, values[:1].size))
    for top in range(0, len(values), rows):
        band = (values[top : top + rows].astype(exact) - black) * scale
        np.clip(np.nan_to_num(band, copy=False, nan=0, posinf=255, neginf=0), 0, 255, out=band)
        result[top : top + rows] = np.rint(band)
    return result


def _valid(values: np.ndarray, no_data: float | None) -> np.ndarray:
    """The values without those that mark missing pixels."""
    if no_data is not None:
        values = values[values != no_data]
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.isfinite(values)]
        values = values[np.abs(values) < NO_DATA]
    # A file that does not say so marks missing pixels by a value far below all others, such as -9999 or -32768.
    while values.size and (lowest := values.min()) < 0:
        others = values[values > lowest]
        if not others.size:
            break
        low, high = _robust_ends(others)
        if float(others.min()) - float(lowest) <= high - low or low == high:
            break
        values = others
    return values


def _robust_ends(values: np.ndarray) -> tuple[float, float]:
    if values.size < MIN_VALUES:
        return float(values.min()), float(values.max())
    ignored = int(np.ceil(OUTLIER_SHARE * values.size))
    ordered = np.partition(values, (ignored, values.size - 1 - ignored))
    return float(ordered[ignored]), float(ordered[values.size - 1 - ignored])


def _is_whole(values: np.ndarray) -> bool:
    return np.issubdtype(values.dtype, np.integer) or bool((values == np.rint(values)).all())


def _type_range(dtype: np.dtype) -> ValueRange | None:
    """The range that says nothing: that of the type."""
    if not np.issubdtype(dtype, np.integer):
        return None
    limits = np.iinfo(dtype)
    return ValueRange(limits.min, limits.max)
