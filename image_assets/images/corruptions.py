"""Blurred, noisy, dark and rotated copies of images, to measure how well a version copes with them.

The corruptions are simple ones of Hendrycks and Dietterich 2019 ("Benchmarking neural network robustness to common
corruptions and perturbations"). As there, they are applied to images of the size that the network gets, so that a level
means the same for every image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from image_assets.images.formats import UnreadableImage
from image_assets.images.pixels import DEFAULT, Reading, to_pixels


@dataclass(frozen=True)
class Corruption:
    """A way to spoil images, one of CORRUPTIONS, and how much."""

    kind: str
    level: float

    def __str__(self) -> str:
        return f"{self.kind} {self.level:g}"


def blurred(pixels: np.ndarray, level: float) -> np.ndarray:
    """Out of focus: the level is the standard deviation of the Gaussian filter, in pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(level)))


def noisy(pixels: np.ndarray, level: float) -> np.ndarray:
    """A noisy sensor: the level is the standard deviation of Gaussian noise, in values from 0 to 255."""
    noise = np.random.default_rng(0).normal(0, level, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def darkened(pixels: np.ndarray, level: float) -> np.ndarray:
    """Little light: the level is the share of the brightness that is gone, from 0 to 1."""
    return np.rint(pixels * (1.0 - level)).astype(np.uint8)


def rotated(pixels: np.ndarray, level: float) -> np.ndarray:
    """A tilted camera: the level is the angle in degrees, counterclockwise."""
    from scipy.ndimage import rotate

    # Mirrored beyond the edges: black corners would be another corruption.
    return rotate(pixels, level, reshape=False, order=1, mode="mirror")


CORRUPTIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "blur": blurred,
    "noise": noisy,
    "darkness": darkened,
    "rotation": rotated,
}


def corrupted_png(content: bytes, corruption: Corruption, side_pixels: int, reading: Reading = DEFAULT) -> bytes | None:
    """A square PNG of an image, corrupted; None if the image cannot be read."""
    try:
        pixels = to_pixels(content, side_pixels, reading=reading)
    except UnreadableImage:
        return None
    file = BytesIO()
    Image.fromarray(CORRUPTIONS[corruption.kind](pixels, corruption.level)).save(file, "PNG", compress_level=1)
    return file.getvalue()
