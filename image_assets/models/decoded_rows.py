"""A cache's rows, decoded while Petastorm reads them: what its TransformSpec does, for both frameworks."""

from hashlib import sha256

import numpy as np
import pandas as pd

from image_assets.pixels import to_pixels

SIDE_PIXELS = 224
COLUMNS = ["content", "label_index"]  # read from the cache
PIXELS_SHAPE = (SIDE_PIXELS, SIDE_PIXELS, 3)
# What becomes of them: name, type, shape, and whether nulls may occur.
FIELDS = [
    ("pixels", np.uint8, PIXELS_SHAPE, False),
    ("label_index", np.int64, (), False),
    ("key", np.int64, (), False),
]


def to_decoded_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """A row group's rows, decoded, with a key that orders them however they were read.

    An image that cannot be decoded raises: none gets into a cache.
    """
    return pd.DataFrame(
        {
            "pixels": [to_pixels(content, SIDE_PIXELS) for content in rows["content"]],
            "label_index": rows["label_index"].astype(np.int64),
            "key": [int.from_bytes(sha256(content).digest()[:8], signed=True) for content in rows["content"]],
        }
    )
