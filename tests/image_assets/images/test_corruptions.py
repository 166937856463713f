"""Corruptions do what their level says, and keep the image's size."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from image_assets.images.corruptions import CORRUPTIONS, Corruption, corrupted_png
from tests.support.images import noise_jpeg, png

SIDE = 64


def corrupted(content: bytes, kind: str, level: float) -> np.ndarray:
    found = corrupted_png(content, Corruption(kind, level), SIDE)
    assert found is not None
    return np.asarray(Image.open(BytesIO(found))).astype(float)


def whole(content: bytes) -> np.ndarray:
    """The image with hardly any corruption."""
    return corrupted(content, "darkness", 1e-9)


def gray() -> bytes:
    content = BytesIO()
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_images_keep_their_size_and_are_the_same_each_time(kind: str) -> None:
    first, again = (corrupted(png(1), kind, 1.0) for _ in range(2))
    assert first.shape == (SIDE, SIDE, 3)
    assert (first == again).all()


def test_dark_images_lose_a_share_of_their_brightness() -> None:
    assert corrupted(png(1), "darkness", 0.75) == pytest.approx(whole(png(1)) / 4, abs=0.5)
    assert not corrupted(png(1), "darkness", 1.0).any()


def test_noise_has_its_standard_deviation() -> None:
    difference = corrupted(gray(), "noise", 10.0) - 128
    assert (difference.mean(), difference.std()) == pytest.approx((0, 10), abs=0.3)


def test_blur_takes_details_away_and_keeps_the_brightness() -> None:
    image, blurred = whole(noise_jpeg(1)), corrupted(noise_jpeg(1), "blur", 3.0)
    assert blurred.std() < image.std() / 2
    assert blurred.mean() == pytest.approx(image.mean(), abs=3)


def test_a_rotation_by_a_right_angle_moves_every_pixel() -> None:
    assert corrupted(png(1), "rotation", 90.0) == pytest.approx(np.rot90(whole(png(1))), abs=1)
    assert (corrupted(gray(), "rotation", 30.0) == 128).all(), "the corners are filled with the image"


def test_what_is_no_image_has_no_corrupted_copy() -> None:
    assert corrupted_png(b"no image", Corruption("blur", 1.0), SIDE) is None
