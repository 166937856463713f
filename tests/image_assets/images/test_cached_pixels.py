"""What a cache holds of an image stands for the pixels of the image itself."""

from pathlib import Path

import numpy as np
import pytest

from image_assets.images.cached_pixels import to_cached, to_cached_pixels
from image_assets.images.features import to_features
from image_assets.images.grayscale import to_grayscale
from image_assets.images.pixels import to_pixels
from resources.delta.row_groups import Color
from tests.support.images import jpeg, png

SIDE_PIXELS = 224
PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "flowers_original"


@pytest.mark.parametrize("image", [png(1), jpeg(2)], ids=["png", "jpeg"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_the_file_and_raw_pixels_stand_for_the_very_same_pixels(image: bytes, color: Color) -> None:
    expected = to_pixels(image, SIDE_PIXELS, color)
    assert to_cached(image, SIDE_PIXELS, "original", color) == image
    raw = to_cached(image, SIDE_PIXELS, "pixels", color)
    assert len(raw) == SIDE_PIXELS**2 * {"rgb": 3, "gray": 1}[color]
    assert (to_cached_pixels(raw, SIDE_PIXELS, "pixels", color) == expected).all()
    assert (to_cached_pixels(image, SIDE_PIXELS, "original", color) == expected).all()


def test_gray_caches_are_the_same_from_the_gray_png() -> None:
    image = jpeg(3)
    for content in ("jpeg", "pixels"):
        assert to_cached(image, SIDE_PIXELS, content, "gray") == to_cached(
            to_grayscale(image), SIDE_PIXELS, content, "gray"
        )


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_small_jpeg_is_upright_and_near_the_pixels(color: Color) -> None:
    files = sorted(PHOTOGRAPHS.rglob("*.jpg"))[::25]
    for image in [file.read_bytes() for file in files] or [jpeg(1)]:
        small = to_cached(image, SIDE_PIXELS, "jpeg", color)
        header = to_features(small)
        assert (header.width, header.height, header.orientation) == (SIDE_PIXELS, SIDE_PIXELS, 1)
        assert header.mode == {"rgb": "RGB", "gray": "L"}[color]
        difference = np.abs(
            to_cached_pixels(small, SIDE_PIXELS, "jpeg", color).astype(int) - to_pixels(image, SIDE_PIXELS, color)
        )
        assert difference.mean() < 5
