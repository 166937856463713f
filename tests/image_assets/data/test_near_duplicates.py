"""Near duplicates are found as by comparing all pairs, in a fraction of the time."""

import time

import numpy as np
import pytest

from image_assets.data.near_duplicates import BITS, DISTANCE, reached, to_groups, to_new_groups, to_numbers


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


def groups_by_all_pairs(hashes: np.ndarray) -> list[int]:
    """The reference: every hash takes the lowest number among its neighbours until nothing changes."""
    apart = np.array([[int(a ^ b).bit_count() for b in hashes.tolist()] for a in hashes.tolist()])
    numbers = np.arange(len(hashes))
    while True:
        lowest = np.array([numbers[row <= DISTANCE].min() for row in apart])
        if (lowest == numbers).all():
            return numbers.tolist()
        numbers = lowest


def partition(groups: list[int]) -> set[frozenset[int]]:
    return {frozenset(place for place, group in enumerate(groups) if group == one) for one in set(groups)}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_all_pairs(seed: int) -> None:
    hashes = with_neighbours(random_hashes(120, seed), 180, seed)
    expected = partition(groups_by_all_pairs(hashes))
    assert partition(to_groups(hashes).tolist()) == expected
    assert 30 < len(expected) < 290, "neighbours were planted, and not all in one chain"


@pytest.mark.parametrize("seed", range(5))
def test_reached_are_the_groups_of_the_marked(seed: int) -> None:
    hashes = with_neighbours(random_hashes(120, seed), 180, seed)
    start = np.random.default_rng(seed).random(len(hashes)) < 0.05
    groups = np.array(groups_by_all_pairs(hashes))
    expected = np.isin(groups, groups[start])
    assert reached(hashes, start).tolist() == expected.tolist()
    assert start.sum() < expected.sum() < len(hashes)
    assert not reached(hashes, np.zeros(len(hashes), bool)).any()


def test_only_known_images_in_a_new_ones_group_have_a_group() -> None:
    known, new = to_new_groups(["ffffffffffffffff", "0000000000000001", None], ["0000000000000003", None, None])
    assert (known[0], known[1], known[2]) == (-1, new[0], -1)
    assert len(set(new)) == 3


@pytest.mark.parametrize("bits", [range(4), range(60, 64), (0, 21, 42, 63), (12, 13, 25, 26), (11, 24, 37, 50)])
def test_hashes_are_close_wherever_they_differ(bits: tuple[int, ...]) -> None:
    other = sum(1 << bit for bit in bits)
    close, far = to_groups(np.array([0, other, 2**64 - 1], dtype=np.uint64))[[0, 2]]
    assert to_groups(np.array([0, other], dtype=np.uint64)).tolist() == [0, 0]
    assert close != far
    assert len(set(to_groups(np.array([0, other | 1 << 31], dtype=np.uint64)).tolist())) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_few_hashes_are_groups_too(count: int) -> None:
    assert to_groups(random_hashes(count, 0)).shape == (count,)


def test_hexadecimal_hashes_are_numbers() -> None:
    assert to_numbers(["0000000000000001", "ffffffffffffffff"]).tolist() == [1, 2**64 - 1]


@pytest.mark.parametrize("repeated", [1, 10])
def test_20000_hashes_are_grouped_in_seconds(repeated: int) -> None:
    hashes = np.repeat(with_neighbours(random_hashes(18_000 // repeated, 1), 2_000 // repeated, 2), repeated)
    started = time.monotonic()
    groups = to_groups(hashes)
    assert time.monotonic() - started < 5
    assert 15_000 // repeated < len(np.unique(groups)) < 20_000 // repeated
