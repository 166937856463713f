"""Photographs for the pictures of the documentation: views of a few that may be passed on, in folders by label.

scikit-learn and scikit-image ship them; docs/index.md credits the photographers. scikit-image is only needed here:
`.venv/bin/uv pip install --group pictures`.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from image_assets.images.features import to_features

PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "cats": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "dahlias": lambda: load_sample_image("flower.jpg"),
    "galaxies": skimage.data.hubble_deep_field,
    "rockets": skimage.data.rocket,
    "temples": lambda: load_sample_image("china.jpg"),
}
VIEWS = 24  # of each photograph
SHARES = (0.45, 0.95)  # of a photograph's shorter side that a view shows
SIDE_PIXELS = 320
LEAST_DISTANCE = 6  # bits between the perceptual hashes of two views: more than near duplicates have
MOVED = {  # two views in a wrong folder, two without a label
    "coffee/view_22.jpg": "temples/coffee_22.jpg",
    "galaxies/view_23.jpg": "rockets/galaxies_23.jpg",
    "cats/view_21.jpg": "unlabeled_0.jpg",
    "dahlias/view_20.jpg": "unlabeled_1.jpg",
}
BROKEN = 12  # uploads that ended too early: enough for the check `few_quarantined` to fail
FIRST, APART = datetime(2026, 5, 4, 9, tzinfo=UTC), timedelta(hours=1)


def write_photographs(landing: Path) -> None:
    """Fills a landing folder with views by label, taken in turn, and with broken uploads."""
    hashes: list[int] = []
    photographs = {label: Image.fromarray(load()) for label, load in PHOTOGRAPHS.items()}
    rng = np.random.default_rng(VIEWS)
    for number in range(VIEWS):
        for place, (label, photograph) in enumerate(photographs.items()):
            name = f"{label}/view_{number:02}.jpg"
            time = FIRST + APART * (number * len(photographs) + place)
            _write(landing / MOVED.get(name, name), _view(photograph, rng, hashes), time)
    for number, file in enumerate(sorted((landing / "temples").glob("view_*.jpg"))[:BROKEN]):
        _write(file.with_name(f"upload_{number:02}.jpg"), file.read_bytes()[: file.stat().st_size // 3], FIRST)


def _write(file: Path, content: bytes, time: datetime) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (time.timestamp(), time.timestamp()))


def _view(photograph: Image.Image, rng: np.random.Generator, hashes: list[int]) -> bytes:
    """A part of a photograph, as a JPEG that is no near duplicate of an earlier one."""
    while True:
        side = rng.uniform(*SHARES) * min(photograph.size)
        left, top = (rng.uniform(0, length - side) for length in photograph.size)
        content = BytesIO()
        box = (left, top, left + side, top + side)
        photograph.resize((SIDE_PIXELS, SIDE_PIXELS), box=box).save(content, "JPEG", quality=90)
        features = to_features(content.getvalue())
        own = int(features.perceptual_hash, 16)
        if all((own ^ other).bit_count() >= LEAST_DISTANCE for other in hashes):
            hashes += [own, int(features.mirrored_hash, 16)]
            return content.getvalue()
