"""A cache's rows, decoded while Petastorm reads them: what its TransformSpec does, for both frameworks."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from image_assets.cache_contents import SIDE_PIXELS, to_cached_pixels
from image_assets.pixels import Crop
from resources.cache_settings import Color, Content

PIXELS_SHAPE = (SIDE_PIXELS, SIDE_PIXELS, 3)
# What becomes of the content: name, type, shape, and whether nulls may occur. Bytes travel through Petastorm at the
# speed of memory, arrays of numbers do not.
DECODED = [("pixels", np.bytes_, (), False)]

SCALE = (0.5, 1.0)  # of the area that a crop keeps
RATIO = (3 / 4, 4 / 3)  # of its width to its height
MIRRORED_SHARE = 0.5


@dataclass(frozen=True)
class Augmentation:
    """Random crops and mirrored images. An image's own bytes, the seed and the epoch say what becomes of it."""

    seed: int
    epoch: int

    def crop(self, image_id: str) -> Crop:
        """What is cut out of the image, and whether it is mirrored.

        Szegedy et al., Going Deeper with Convolutions (2014), as torchvision's RandomResizedCrop has it.
        """
        rng = np.random.default_rng((self.seed, self.epoch, int(image_id[:16], 16)))
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        area = rng.uniform(*SCALE)
        width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return Crop(left, top, left + width, top + height, mirrored=bool(rng.random() < MIRRORED_SHARE))


@dataclass(frozen=True)
class Decoding:
    """How a cache's content becomes pixels."""

    content: Content = "original"
    color: Color = "rgb"
    augmentation: Augmentation | None = None

    def pixels(self, image_id: str, cached: bytes) -> bytes:
        """The pixels (224, 224, 3) uint8 of one row, as bytes."""
        crop = self.augmentation.crop(image_id) if self.augmentation else None
        return to_cached_pixels(cached, self.content, self.color, crop).tobytes()


def to_decoded_rows(rows: pd.DataFrame, decoding: Decoding, skipped: frozenset[str]) -> pd.DataFrame:
    """A row group's rows with `pixels` in place of their content; no bytes where the image is skipped.

    An image that cannot be decoded raises: none gets into a cache.
    """
    pixels = [
        b"" if image_id in skipped else decoding.pixels(cast("str", image_id), content)
        for image_id, content in zip(rows["image_id"], rows["content"], strict=True)
    ]
    return rows.drop(columns="content").assign(pixels=pixels)
