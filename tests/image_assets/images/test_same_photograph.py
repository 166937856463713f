"""Edits of a photograph are recognised, and other shots of the same scene are not taken for it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import to_noise
from image_assets.data.duplicate_groups import to_groups
from image_assets.images.fingerprints import VARIANTS, read_thumbnail, to_fingerprint, to_thumbnail
from image_assets.images.near_duplicates import to_candidates
from image_assets.images.same_photograph import same_photographs
from tests.support.photographs import PHOTOGRAPHS
from tests.support.shots import EDITS, Ground, disc, part_under_a_camera, swatch


def found_pairs(images: Sequence[Image.Image]) -> np.ndarray:
    """The pairs (2, p) of the images that show the same photograph."""
    fingerprints = [to_fingerprint(to_thumbnail(image)) for image in images]
    hashes = np.stack([np.frombuffer(one.hashes, dtype=">u8") for one in fingerprints])
    found = to_candidates(hashes, np.ones(len(images), dtype=bool))
    if not len(found):
        return np.empty((2, 0), dtype=np.int64)
    thumbnails = np.stack([read_thumbnail(one.thumbnail) for one in fingerprints])
    second = thumbnails[found.second]
    second[found.mirrored] = second[found.mirrored, :, ::-1]
    matrices = np.stack([VARIANTS[number].matrix for number in found.variant])
    same = found.of(same_photographs(thumbnails[found.first], second, matrices))
    return np.stack([same.first, same.second])


def recognised(originals: Sequence[Image.Image], edit: Callable[[Image.Image], Image.Image]) -> tuple[int, int]:
    """How many edits were found, and how many pairs are wrong."""
    count = len(originals)
    first, second = found_pairs([*originals, *(edit(image) for image in originals)])
    right = np.abs(first - second) == count
    return int(right.sum()), int((~right).sum())


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_found(name: str) -> None:
    assert recognised([to_noise(seed) for seed in range(12)], EDITS[name]) == (12, 0)


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_real_photographs_are_found(name: str) -> None:
    paths = sorted((PHOTOGRAPHS.parent / "flowers_original").rglob("*.jpg"))[::8]
    if not paths:
        pytest.skip(f"no photographs in {PHOTOGRAPHS.parent}")
    found, wrong = recognised([Image.open(path).convert("RGB") for path in paths], EDITS[name])
    assert found >= 0.9 * len(paths)
    assert wrong == 0


@pytest.mark.parametrize("ground", ["plain", "gradient", "rough"])
def test_shots_of_a_fixed_camera_are_not_one_photograph(ground: Ground) -> None:
    shots = [part_under_a_camera(number, scratched=number % 2 > 0, ground=ground) for number in range(40)]
    groups = np.bincount(to_groups(len(shots), found_pairs(shots)))
    assert len(groups) >= 10
    assert groups.max() <= 20


@pytest.mark.parametrize("spread", [0, 10])
def test_discs_of_another_color_are_not_one_photograph(spread: int) -> None:
    discs = [disc(number, red=number % 2 > 0, spread=spread) for number in range(40)]
    assert found_pairs(discs).shape[1] == 0


def test_colors_alone_are_not_compared() -> None:
    assert found_pairs([swatch(number) for number in range(20)]).shape[1] == 0


def test_another_color_is_another_photograph() -> None:
    picture = to_noise(0)
    red, green, blue = picture.split()
    assert found_pairs([picture, Image.merge("RGB", (green, blue, red))]).shape[1] == 0


def test_a_changed_part_is_another_photograph() -> None:
    picture = to_noise(0)
    changed = picture.copy()
    changed.paste(to_noise(1).resize((80, 60)), (200, 150))
    assert found_pairs([picture, changed]).shape[1] == 0


def test_a_moved_camera_is_another_photograph() -> None:
    scene = to_noise(0, (600, 400))
    shots = [scene.crop((left, 20, left + 500, 353)) for left in (20, 44)]
    assert found_pairs(shots).shape[1] == 0
