"""Near duplicates: pairs of images that may be the same photograph, proposed by their hashes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from image_assets.images.fingerprints import HASHES

BITS = 64
DISTANCE = 8  # bits in which the hash of an edit may differ from the one computed in advance
BANDS = np.array_split(np.arange(BITS), 6)
KEYS = tuple(combinations(BANDS, 2))  # each of 21 or 22 bits: few of a million images share one by chance
# Candidates of an image: shots of a fixed camera are all alike, and to compare all pairs would take forever.
NEAREST = 8
BUCKET = 16  # hashes that each hash is compared with for each key
CHUNK = 1 << 18  # hashes compared at once


@dataclass(frozen=True)
class Candidates:
    """Pairs of images (p,) that may be the same photograph: `second` looks like a variant of `first`.

    `variant` is the position in VARIANTS; `mirrored` means that the mirror image of `second` looks like it.
    """

    first: np.ndarray
    second: np.ndarray
    variant: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def of(self, some: np.ndarray) -> "Candidates":
        """The pairs selected by an index or a mask."""
        return Candidates(self.first[some], self.second[some], self.variant[some], self.mirrored[some])


def to_candidates(hashes: np.ndarray, new: np.ndarray) -> Candidates:
    """The pairs with at least one new image, at most NEAREST for each image.

    Args:
        hashes: Of each image, as `to_hashes` returns them: (n, HASHES) uint64.
        new: Which images (n,) are new.
    """
    hashes = hashes.astype(np.uint64)  # in the machine's byte order
    everything, of_new = np.arange(len(hashes)), np.flatnonzero(new)
    found = [_matches(hashes, of_new, everything)]
    if len(of_new) < len(hashes):
        found.append(_matches(hashes, np.flatnonzero(~new), of_new))
    distance, first, second, variant, mirrored = np.concatenate(found, axis=1)
    # Of several ways in which two images look alike, only the best is kept.
    low, high = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((variant, distance, high, low))
    low, high = low[order], high[order]
    best = order[np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])][: len(order)]]
    best = best[np.argsort(distance[best], kind="stable")]
    nearest = best[(_rank(first[best]) < NEAREST) | (_rank(second[best]) < NEAREST)]
    return Candidates(first[nearest], second[nearest], variant[nearest], mirrored[nearest].astype(bool))


def _matches(hashes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance, first image, second image, variant and mirrored (5, m) of hashes that are close.

    The variants of the first images are compared with the whole and the mirrored second images. Two hashes that differ
    in at most four bits agree in two of six bands; most of those that differ in a few more do so as well.
    """
    sought_hashes, indexed_hashes = hashes[first, :-1].ravel(), hashes[second][:, [0, -1]].ravel()
    found = [np.empty((5, 0), dtype=np.int64)]
    for key in KEYS:
        for left, right, distance in _close_pairs(sought_hashes, indexed_hashes, key):
            one, variant = first[left // (HASHES - 1)], left % (HASHES - 1)
            other, mirrored = second[right // 2], right % 2
            found.append(np.stack([distance, one, other, variant, mirrored])[:, one != other])
    return np.concatenate(found, axis=1)


def _close_pairs(
    sought: np.ndarray, indexed: np.ndarray, key: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions in `sought` and `indexed`, and distances, of hashes that agree in a key and differ in few other bits.

    If many agree in a key, each hash is compared with those that come next to it in sorted order only.
    """
    bits = sum(len(band) for band in key)
    there = np.arange(len(indexed))
    if len(sought) < len(indexed):  # sorting is what takes long: only those that share a key with some
        there = np.flatnonzero(_with_keys(sought, key)[_key(indexed, key)])
    ordered = _sortable(indexed[there], key)
    order = np.argsort(ordered)
    ordered, order = ordered[order], there[order]
    ordered_keys = (ordered >> np.uint64(BITS - bits)).astype(np.int64)
    # Most hashes share no key with any of a few: a table of the keys, which fits into a processor's cache, says so.
    is_there = _with_keys(indexed[there], key)
    # A table of all keys is the fastest way to find a key's positions, but making it costs a million searches.
    starts = None
    if len(sought) > 1 << 20 < len(indexed):
        starts = np.concatenate([[0], np.cumsum(np.bincount(ordered_keys, minlength=1 << bits))])
    for chunk in range(0, len(sought), CHUNK):
        hashes = sought[chunk : chunk + CHUNK]
        some = np.flatnonzero(is_there[_key(hashes, key)])
        wanted = _sortable(hashes[some], key)
        keys = (wanted >> np.uint64(BITS - bits)).astype(np.int64)
        if starts is None:
            begin, end = np.searchsorted(ordered_keys, keys, "left"), np.searchsorted(ordered_keys, keys, "right")
        else:
            begin, end = starts[keys], starts[keys + 1]
        many = np.flatnonzero(end - begin > BUCKET)
        if len(many):
            middle = np.searchsorted(ordered, wanted[many]) - BUCKET // 2
            begin[many] = np.clip(middle, begin[many], end[many] - BUCKET)
            end[many] = begin[many] + BUCKET
        sizes = end - begin
        left = np.repeat(chunk + some, sizes)
        right = order[np.arange(len(left)) - np.repeat(np.cumsum(sizes) - sizes - begin, sizes)]
        distance = _bit_count(sought[left] ^ indexed[right])
        close = distance <= DISTANCE
        yield left[close], right[close], distance[close]


def _with_keys(hashes: np.ndarray, key: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether any of the hashes has a key, for each value of the key."""
    found = np.zeros(1 << sum(map(len, key)), dtype=bool)
    found[_key(hashes, key)] = True
    return found


def _sortable(hashes: np.ndarray, key: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The hashes with the bits of the key first, followed by as many of the others as there is room for."""
    room = BITS - sum(map(len, key))
    return (_key(hashes, key).astype(np.uint64) << np.uint64(room)) | (hashes >> np.uint64(BITS - room))


def _key(hashes: np.ndarray, key: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The bits of the key."""
    one, other = key
    high = (hashes >> np.uint64(one[0])) & np.uint64((1 << len(one)) - 1)
    low = (hashes >> np.uint64(other[0])) & np.uint64((1 << len(other)) - 1)
    return ((high << np.uint64(len(other))) | low).astype(np.int64)


def _bit_count(values: np.ndarray) -> np.ndarray:
    """How many bits of each number (n,) uint64 are set, as NumPy 2 counts them."""
    values = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    values = (values & np.uint64(0x3333333333333333)) + ((values >> np.uint64(2)) & np.uint64(0x3333333333333333))
    values = (values + (values >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((values * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def _rank(values: np.ndarray) -> np.ndarray:
    """How many earlier positions (n,) have the same value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return ranks
