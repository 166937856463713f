"""A contact sheet is a small JPEG with every image in its place, whatever the images and captions are."""

from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_assets.images.contact_sheets import contact_sheet, partial_thumbnails, thumbnails
from resources.files.file_system import to_path
from tests.support.images import noise_jpeg, opened, put


@pytest.mark.parametrize("count", [0, 1, 8, 9, 60])
def test_a_contact_sheet_of_any_length_is_a_small_jpeg(count: int) -> None:
    sheet = contact_sheet([(noise_jpeg(number), f"roses/{number:012}.jpg") for number in range(count)])
    assert opened(sheet).format == "JPEG"
    assert opened(sheet).width < 1000
    assert len(sheet) <= 100_000


def test_each_image_stands_in_its_place_above_its_caption() -> None:
    red, blue = BytesIO(), BytesIO()
    Image.new("RGB", (100, 100), (255, 0, 0)).save(red, "PNG")
    Image.new("RGB", (100, 100), (0, 0, 255)).save(blue, "PNG")
    sheet = opened(contact_sheet([(red.getvalue(), ""), (blue.getvalue(), "daisy")], side_pixels=100, columns=2))
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert np.abs(pixels[58, 58] - (255, 0, 0)).max() < 30
    assert np.abs(pixels[58, 166] - (0, 0, 255)).max() < 30
    assert pixels[115:, :108].min() > 200  # no caption
    assert pixels[115:, 116:].min() < 150  # a caption


def test_images_that_cannot_be_decoded_are_gray_boxes() -> None:
    sheet = opened(contact_sheet([(b"no image", "broken.jpg"), (noise_jpeg(1)[:400], "half.jpg")]))
    assert np.abs(np.asarray(sheet.convert("RGB")).astype(int)[20, 20] - 0xDD).max() < 12


def test_links_are_shown_if_they_lead_below_a_named_root(tmp_path: Path) -> None:
    landing, pool = tmp_path / "landing", tmp_path / "pool"
    landing.mkdir()
    paths = []
    for name, content in (("whole.jpg", noise_jpeg(1)), ("half.jpg", noise_jpeg(1)[:-2000])):
        (landing / name).symlink_to(put(pool, name, content))
        paths.append(to_path(bytes(landing / name)))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # other tests have used libvips in this one
        for roots, is_shown in (((), False), ((str(pool),), True)):
            whole = apart.submit(thumbnails, [(paths[0], None)], roots).result()
            half = apart.submit(partial_thumbnails, paths[1:], roots).result()
            assert [bool(picture) for picture in (*whole, *half)] == [is_shown] * 2


@pytest.mark.parametrize("caption", ["", "a" * 300, "word " * 80, "first\nsecond\nthird", "ромашка 雛菊 🌼", "/"])
def test_any_caption_fits(caption: str) -> None:
    assert opened(contact_sheet([(noise_jpeg(0), caption)])).size == opened(contact_sheet([(noise_jpeg(0), "a")])).size
