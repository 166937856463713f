"""Similar hashes become candidates, in a fraction of the time that comparing all pairs takes."""

import time

import numpy as np
import pytest

from image_assets.images.fingerprints import HASHES, VARIANTS
from image_assets.images.near_duplicates import BITS, NEAREST, Candidates, to_candidates


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, HASHES), dtype=np.uint64)


def flipped(hashes: np.ndarray, bits: int, seed: int = 1) -> np.ndarray:
    """The hashes with so many random bits changed in each."""
    places = np.random.default_rng(seed).random((len(hashes), BITS)).argsort(axis=1)[:, :bits].astype(np.uint64)
    return hashes ^ (np.uint64(1) << places).sum(axis=1, dtype=np.uint64)


def all_new(hashes: np.ndarray) -> Candidates:
    return to_candidates(hashes, np.ones(len(hashes), dtype=bool))


def pairs(candidates: Candidates) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in zip(candidates.first.tolist(), candidates.second.tolist(), strict=True)}


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("column", [0, HASHES - 1])
def test_an_image_is_a_candidate_for_each_variant_of_another_one(variant: int, column: int) -> None:
    hashes = random_hashes(40)
    hashes[20:, column] = flipped(hashes[:20, variant], 4)
    found = all_new(hashes)
    assert pairs(found) == {frozenset((number, number + 20)) for number in range(20)}
    assert set(found.mirrored.tolist()) == {column > 0}
    assert {variant} == set(found.variant.tolist()), "the alignment starts there"
    assert (found.first < 20).all() or column == 0 == variant


@pytest.mark.parametrize(("bits", "least", "most"), [(4, 200, 200), (6, 140, 200), (8, 60, 200), (10, 0, 0)])
def test_four_bits_are_always_found_and_most_of_six(bits: int, least: int, most: int) -> None:
    hashes = random_hashes(400)
    hashes[200:, 0] = flipped(hashes[:200, 0], bits)
    assert least <= len(pairs(all_new(hashes))) <= most


@pytest.mark.parametrize("new_count", [1, 20, 39])
def test_only_pairs_with_a_new_image_are_compared_whichever_of_the_two_is_the_edit(new_count: int) -> None:
    hashes = random_hashes(40)
    hashes[20:, 0] = flipped(hashes[:20, 5], 2)
    hashes[::3] = hashes[::3][::-1]  # edits before and after their originals
    new = np.arange(40) >= 40 - new_count
    expected = {pair for pair in pairs(all_new(hashes)) if any(new[number] for number in pair)}
    assert pairs(to_candidates(hashes, new)) == expected != set()


def test_images_that_are_all_alike_have_few_candidates_each_the_closest_among_them() -> None:
    same = random_hashes(1).repeat(3000, axis=0)
    same[:, 0] = flipped(same[:, 0], 8)
    same[-1, 0] = same[0, 0]
    found = all_new(same)
    assert len(found) <= NEAREST * len(same)
    assert frozenset((0, len(same) - 1)) in pairs(found)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_have_no_candidates(count: int) -> None:
    assert len(all_new(random_hashes(count))) == 0
    assert len(to_candidates(random_hashes(count), np.zeros(count, dtype=bool))) == 0


@pytest.mark.slow
def test_100000_images_are_compared_in_seconds() -> None:
    hashes = random_hashes(100_000)
    hashes[50_000:, 0] = flipped(hashes[:50_000, 3], 3)
    started = time.process_time()
    assert len(pairs(all_new(hashes))) >= 50_000
    assert time.process_time() - started < 20
