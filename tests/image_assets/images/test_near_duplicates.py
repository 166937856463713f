"""Near duplicates are found as by comparing all pairs, in a fraction of the time."""

import time
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from image_assets.images.near_duplicates import BITS, DISTANCE, group_new_images, reachable, to_groups, to_image_hashes


def random_hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def with_neighbours(hashes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The hashes and as many others, each some bits away from a random one: close, just too far, in chains."""
    chance = np.random.default_rng(seed)
    grown = list(hashes)
    for _ in range(count):
        bits = chance.choice(BITS, chance.integers(0, DISTANCE + 3), replace=False)
        grown.append(grown[chance.integers(len(grown))] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64)))
    return np.array(grown, dtype=np.uint64)[chance.permutation(len(grown))]


def to_images(plain: np.ndarray, mirrored: np.ndarray | None = None) -> pd.DataFrame:
    """Images with these hashes; without mirrored ones, or without some (0), as older rows are."""
    mirrored = np.zeros(len(plain), dtype=np.uint64) if mirrored is None else mirrored
    return pd.DataFrame(
        {
            "image_id": [f"{number:064x}" for number in range(len(plain))],
            "perceptual_hash": [f"{number:016x}" for number in plain.tolist()],
            "mirrored_hash": [f"{number:016x}" if number else None for number in mirrored.tolist()],
        },
        dtype=object,
    )


def mixed_images(seed: int) -> pd.DataFrame:
    """300 images with neighbours, plain and mirrored; a third of them without a mirrored hash."""
    hashes = with_neighbours(random_hashes(240, seed), 360, seed)
    mirrored = np.where(np.random.default_rng(seed).random(300) < 1 / 3, 0, hashes[300:])
    return to_images(hashes[:300], mirrored.astype(np.uint64))


def groups_by_all_pairs(images: pd.DataFrame) -> np.ndarray:
    """The reference: every image takes the lowest number among those that look like it until nothing changes."""
    looks = [
        [int(text, 16) for text in (row.perceptual_hash, row.mirrored_hash) if text is not None]
        for row in images.itertuples()
    ]
    near = np.array(
        [[any((a ^ b).bit_count() <= DISTANCE for a in one for b in other) for other in looks] for one in looks]
    )
    numbers = np.arange(len(images))
    while True:
        lowest = np.array([numbers[row].min() for row in near])
        if (lowest == numbers).all():
            return numbers
        numbers = lowest


def groups_of(*hashes: int) -> list[int]:
    return to_groups(to_image_hashes(to_images(np.array(hashes, dtype=np.uint64)))).tolist()


def partition(groups: list[int]) -> set[frozenset[int]]:
    return {frozenset(place for place, group in enumerate(groups) if group == one) for one in set(groups)}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_all_pairs(seed: int) -> None:
    images = mixed_images(seed)
    expected = partition(groups_by_all_pairs(images).tolist())
    assert partition(to_groups(to_image_hashes(images)).tolist()) == expected
    assert 30 < len(expected) < 250, "neighbours were planted, and not all in one chain"


@pytest.mark.parametrize("seed", range(5))
def test_reached_are_the_groups_of_the_marked(seed: int) -> None:
    images = mixed_images(seed)
    looks, start = to_image_hashes(images), np.random.default_rng(seed).random(len(images)) < 0.05
    groups = groups_by_all_pairs(images)
    expected = np.isin(groups, groups[start])
    assert reachable(looks, start).tolist() == expected.tolist()
    assert start.sum() < expected.sum() < len(images)
    assert not reachable(looks, np.zeros(len(images), bool)).any()


@pytest.mark.parametrize("new_count", [1, 20, 300])
def test_new_images_are_in_the_groups_that_all_images_together_make(new_count: int) -> None:
    images = mixed_images(7)
    groups = groups_by_all_pairs(images)
    known, new = group_new_images(images.iloc[:-new_count], images.iloc[-new_count:])
    concerned = np.isin(groups, groups[-new_count:])
    assert (known >= 0).tolist() == concerned[: len(known)].tolist()
    assert partition([*known[known >= 0].tolist(), *new.tolist()]) == partition(groups[concerned].tolist())


def test_a_mirrored_twin_is_in_the_group_when_one_of_the_two_has_a_mirrored_hash() -> None:
    plain, mirrored = random_hashes(2, 0)
    image, twin = ([plain, mirrored], [mirrored ^ np.uint64(0b101), plain])
    for of_image, of_twin in ((image, twin), (image, [twin[0], 0]), ([plain, 0], twin)):
        both = np.array([of_image, of_twin], dtype=np.uint64)
        assert len(set(to_groups(to_image_hashes(to_images(both[:, 0], both[:, 1]))))) == 1
    assert len(set(groups_of(int(plain), int(twin[0])))) == 2, "older rows have none"


def test_an_image_without_a_hash_is_in_the_group_of_its_copies() -> None:
    images = to_images(random_hashes(5, 0)).assign(perceptual_hash=None)
    images["image_id"] = [sha256(name).hexdigest() for name in (b"a", b"b", b"a", b"c", b"b")]
    known, new = group_new_images(images.iloc[:2], images.iloc[2:])
    assert (known[0], known[1]) == (new[0], new[2])
    assert len(set(new)) == 3


@pytest.mark.parametrize("bits", [range(4), range(60, 64), (0, 21, 42, 63), (12, 13, 25, 26), (11, 24, 37, 50)])
def test_hashes_are_close_wherever_they_differ(bits: tuple[int, ...]) -> None:
    other = sum(1 << bit for bit in bits)
    first, second, far = groups_of(0, other, 2**64 - 1)
    assert first == second != far
    assert len(set(groups_of(0, other | 1 << 31))) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_are_groups_too(count: int) -> None:
    assert to_groups(to_image_hashes(to_images(random_hashes(count, 0)))).shape == (count,)


@pytest.mark.slow
@pytest.mark.parametrize("repeated", [1, 10])
def test_100000_images_are_grouped_in_seconds(repeated: int) -> None:
    hashes = np.repeat(with_neighbours(random_hashes(180_000 // repeated, 1), 20_000 // repeated, 2), repeated)
    looks = to_image_hashes(to_images(hashes[:100_000], hashes[100_000:]))
    started = time.process_time()
    groups = to_groups(looks)
    assert time.process_time() - started < 20
    assert 60_000 // repeated < len(np.unique(groups)) < 100_000 // repeated
