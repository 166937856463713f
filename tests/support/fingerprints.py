"""Fingerprints of pictures in featured_images."""

from hashlib import sha256

import pandas as pd
from PIL import Image

from image_assets.images.fingerprints import to_fingerprint, to_thumbnail
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import file_layout


def write_fingerprints(delta_tables: DeltaTables, images: dict[str, Image.Image | None]) -> pd.DataFrame:
    """Rows of featured_images by name, with fingerprints where there is an image; returns their keys."""
    rows = []
    for name, image in images.items():
        fingerprint = to_fingerprint(to_thumbnail(image)) if image else None
        content = image.tobytes() if image else name.encode()
        rows.append(
            {
                **dict.fromkeys(FEATURED_IMAGES.columns.fieldNames()),
                "path": f"file:/{name}",
                "image_id": sha256(content).hexdigest(),
                "format": name[:1],
                "hashes": fingerprint and fingerprint.hashes,
                "thumbnail": fingerprint and fingerprint.thumbnail,
            }
        )
    delta_tables.create(FEATURED_IMAGES)
    files = write_files(rows, delta_tables.uri(FEATURED_IMAGES), file_layout(FEATURED_IMAGES))
    delta_tables.append_files(FEATURED_IMAGES, list(files))
    return pd.DataFrame(rows, columns=["path", "image_id"])
