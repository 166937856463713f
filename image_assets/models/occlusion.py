"""Which parts of an image a prediction depends on: how much the probability falls when a part is covered.

Occlusion needs nothing of a network but its probabilities (Zeiler and Fergus, Visualizing and Understanding
Convolutional Networks, 2014, section 4.2). This file stands alone: it is also stored beside every model version and
loaded from there.
"""

from collections.abc import Callable

import numpy as np

SQUARES = 8  # per side of a heat map
COVER_SQUARES = 2  # per side of a cover: a smaller one would hide too little of what a network sees
SHARPNESS = 4  # found with squares planted on photographs: tests/image_assets/models/test_occlusion.py


def with_covers(pixels: np.ndarray) -> np.ndarray:
    """The image (side, side, 3) uint8, then copies of it with one part covered each: (1 + covers, side, side, 3).

    A cover shows the part of the image that is half the image away. A gray one would be a flat square with sharp edges,
    which no photograph has, and to which a network may react as it does to a planted square.
    """
    edges, elsewhere = _edges(len(pixels)), np.roll(pixels, (len(pixels) // 2, len(pixels) // 2), axis=(0, 1))
    copies = np.repeat(pixels[None], 1 + len(_corners()), axis=0)
    for copy, (row, column) in zip(copies[1:], _corners(), strict=True):
        part = slice(edges[row], edges[row + COVER_SQUARES]), slice(edges[column], edges[column + COVER_SQUARES])
        copy[part] = elsewhere[part]
    return copies


def to_heat(probabilities: np.ndarray) -> np.ndarray:
    """The heat map (SQUARES, SQUARES) float64 of a label, from its probabilities for the images of `with_covers`.

    The greatest value is the mean fall of the probability over the covers that hide that square. The other values are
    smaller by the fourth power of how much smaller their falls are: a cover disturbs a network a little wherever it is,
    and only what counts should show. 0 where covering raises the probability.
    """
    falls, covers = np.zeros((2, SQUARES, SQUARES))
    for (row, column), probability in zip(_corners(), probabilities[1:], strict=True):
        part = slice(row, row + COVER_SQUARES), slice(column, column + COVER_SQUARES)
        falls[part] += float(probabilities[0] - probability)
        covers[part] += 1
    means = np.maximum(falls / covers, 0)
    greatest = means.max()
    return greatest * (means / greatest) ** SHARPNESS if greatest else means


def heat_map(network: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """The heat map of the most probable label.

    Args:
        network: From pixels (n, side, side, 3) uint8 to probabilities (n, labels).
        pixels: One image (side, side, 3) uint8.
    """
    probabilities = network(with_covers(pixels)).astype(np.float64)
    return to_heat(probabilities[:, probabilities[0].argmax()])


def _corners() -> list[tuple[int, int]]:
    """The first row and column of squares of each cover."""
    starts = range(SQUARES - COVER_SQUARES + 1)
    return [(row, column) for row in starts for column in starts]


def _edges(side_pixels: int) -> list[int]:
    return [round(number * side_pixels / SQUARES) for number in range(SQUARES + 1)]
