"""A cache's rows as pixels, whole and augmented."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pandas as pd

from image_assets.images.pixels import to_pixels
from image_assets.models.training_images import Augmentation, Decoding, to_decoded_images
from tests.support.images import png

CONTENTS = [png(number, (300, 200)) for number in range(3)]
ROWS = pd.DataFrame(
    {"image_id": [sha256(content).hexdigest() for content in CONTENTS], "content": CONTENTS, "label_index": [0, 1, 0]}
)


def pixels(decoding: Decoding) -> np.ndarray:
    return to_decoded_images(ROWS, decoding).pixels


def test_rows_are_decoded_but_for_those_that_are_skipped() -> None:
    first, second, third = ROWS["image_id"]
    images = to_decoded_images(ROWS, Decoding(224), frozenset({second}))
    assert (images.image_ids.tolist(), images.label_indexes.tolist()) == ([first, third], [0, 0])
    assert (images.pixels == np.stack([to_pixels(CONTENTS[0], 224), to_pixels(CONTENTS[2], 224)])).all()
    assert len(to_decoded_images(ROWS, Decoding(224), frozenset(ROWS["image_id"]))) == 0


def test_an_image_is_augmented_in_its_own_way_in_each_epoch_whoever_reads_it() -> None:
    plain, first, again, later = (
        pixels(decoding)
        for decoding in (Decoding(224), *(Decoding(224, augmentation=Augmentation(0, epoch)) for epoch in (1, 1, 2)))
    )
    assert (first == again).all()
    for different in (plain, later):
        assert all((one != other).any() for one, other in zip(first, different, strict=True))


def test_crops_keep_half_of_the_image_at_least_and_half_of_them_are_mirrored() -> None:
    crops = [Augmentation(0, 1).crop(sha256(bytes([number])).hexdigest()) for number in range(200)]
    for crop in crops:
        assert 0 <= crop.left < crop.right <= 1
        assert 0 <= crop.top < crop.bottom <= 1
        assert (crop.right - crop.left) * (crop.bottom - crop.top) > 0.45
    assert 70 < sum(crop.mirrored for crop in crops) < 130


def test_gray_is_the_same_in_all_channels() -> None:
    gray = pixels(Decoding(224, color="gray"))
    assert (gray[..., :1] == gray).all()


def test_pixels_that_were_kept_are_cropped_as_well() -> None:
    cached = ROWS.assign(content=[to_pixels(content, 224).tobytes() for content in CONTENTS])
    whole = to_decoded_images(cached, Decoding(224, "pixels")).pixels
    assert [image.tobytes() for image in whole] == cached["content"].tolist()
    decoding = replace(Decoding(224, "pixels"), augmentation=Augmentation(0, 1))
    cropped = to_decoded_images(cached, decoding).pixels
    assert all((one != other).any() for one, other in zip(cropped, whole, strict=True))
