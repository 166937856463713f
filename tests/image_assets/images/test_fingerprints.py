"""The hashes of variants are those that edited images have."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks.photographs import to_noise
from image_assets.images.fingerprints import (
    HASHES,
    SIDE,
    VARIANTS,
    Variant,
    read_thumbnail,
    to_fingerprint,
    to_hashes,
    to_thumbnail,
)
from tests.support.shots import cropped, straightened

PICTURE = to_noise(3, (400, 400))


def distances(hashes: np.ndarray, image: Image.Image) -> list[int]:
    """In how many bits imagehash's hash of an image differs from each hash."""
    wanted = int(str(imagehash.phash(to_thumbnail(image).convert("L"))), 16)
    return [(int(one) ^ wanted).bit_count() for one in hashes]


@pytest.mark.parametrize(
    ("image", "variant"),
    [
        (PICTURE, Variant()),
        (cropped(PICTURE), Variant(0.9)),
        (cropped(PICTURE, 0, 0), Variant(0.9, -0.05, -0.05)),
        (cropped(PICTURE, 1, 1 / 3), Variant(0.9, 0.05, -0.1 / 6)),
        (PICTURE.rotate(3, Image.Resampling.BICUBIC), Variant(angle=3.0)),
        (PICTURE.rotate(-3, Image.Resampling.BICUBIC), Variant(angle=-3.0)),
        (straightened(PICTURE, 3), Variant(0.93, angle=3)),
    ],
)
def test_a_variants_hash_is_nearly_that_of_the_edited_image(image: Image.Image, variant: Variant) -> None:
    found = distances(to_hashes(np.asarray(to_thumbnail(PICTURE))), image)
    closest = VARIANTS[int(np.argmin(found[:-1]))]
    assert min(found) <= 6
    assert (closest.scale, closest.angle) == (variant.scale, variant.angle)
    assert (closest.right, closest.down) == pytest.approx((variant.right, variant.down))


def test_the_last_hash_is_that_of_the_mirrored_image() -> None:
    hashes = to_hashes(np.asarray(to_thumbnail(PICTURE)))
    assert (hashes.shape, distances(hashes, ImageOps.mirror(PICTURE))[-1]) == ((HASHES,), 0)
    assert distances(hashes, PICTURE)[0] == 0


def test_a_fingerprint_holds_the_thumbnail_and_its_hashes() -> None:
    thumbnail = to_thumbnail(PICTURE)
    fingerprint = to_fingerprint(thumbnail)
    assert read_thumbnail(fingerprint.thumbnail).shape == (SIDE, SIDE, 3)
    assert np.abs(read_thumbnail(fingerprint.thumbnail).astype(int) - np.asarray(thumbnail)).mean() < 4
    hashes = np.frombuffer(fingerprint.hashes, dtype=">u8")
    assert hashes.tolist() == to_hashes(np.asarray(thumbnail)).tolist()
    assert (fingerprint.perceptual_hash, fingerprint.mirrored_hash) == (f"{hashes[0]:016x}", f"{hashes[-1]:016x}")


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 30_000), (64, 64), (31, 57)])
def test_every_size_has_a_fingerprint(size: tuple[int, int]) -> None:
    assert len(to_fingerprint(to_thumbnail(Image.new("L", size, 100))).hashes) == 8 * HASHES
