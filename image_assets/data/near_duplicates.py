"""Images that look the same, found by their perceptual hashes."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BITS = 64
DISTANCE = 4  # bits in which the hashes of near duplicates may differ
BANDS = np.array_split(np.arange(BITS), DISTANCE + 1)


def to_numbers(hashes: list[str]) -> np.ndarray:
    """Hexadecimal hashes as an array (n,) of uint64."""
    return np.array([int(text, 16) for text in hashes], dtype=np.uint64)


def to_groups(hashes: np.ndarray) -> np.ndarray:
    """A group number (n,) for each hash (n,) uint64: chains of hashes at most DISTANCE bits apart share one.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits (pigeonhole), so that
    only hashes that share a band are compared, not all pairs.
    """
    unique, index = np.unique(hashes, return_inverse=True)
    edges = [_close_pairs(unique, band) for band in BANDS]
    left, right = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(unique), len(unique)))
    return connected_components(graph, directed=False)[1][index]


def reached(hashes: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Which hashes (n,) uint64 share a group with one of those that `start` (n,) bool marks, themselves included.

    Only what shares a band with what was reached last is compared, as far as the chains go: a few new
    hashes among many known ones cost little more than a look at everyone's bands.
    """
    found, last = start, start
    while last.any():
        near = last | (_share_a_band(hashes, last) & ~found)
        groups = to_groups(hashes[near])
        joined = near.copy()
        joined[near] = np.isin(groups, groups[last[near]])
        found, last = found | joined, joined & ~found
    return found


def to_new_groups(known: Sequence[str | None], new: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers for known and new hexadecimal hashes; -1 for a known one that is in no new one's group.

    An image without a hash is a group of its own.
    """
    texts = [*known, *new]
    is_new = np.arange(len(texts)) >= len(known)
    hashed = np.array([text is not None for text in texts], dtype=bool)
    hashes = to_numbers([text for text in texts if text is not None])
    within = reached(hashes, is_new[hashed])
    groups = np.full(len(texts), -1)
    groups[np.flatnonzero(hashed)[within]] = to_groups(hashes[within])
    alone = np.flatnonzero(is_new & ~hashed)
    groups[alone] = np.arange(len(alone)) + groups.max(initial=-1) + 1
    return groups[: len(known)], groups[len(known) :]


def _share_a_band(hashes: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which hashes agree in a whole band with one of `some` (n,) bool."""
    bands = [_in_band(hashes, band) for band in BANDS]
    return np.logical_or.reduce([np.isin(keys, keys[some]) for keys in bands])


def _in_band(hashes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """The hashes' bits (n,) in the band."""
    return (hashes >> np.uint64(band[0])) & np.uint64((1 << len(band)) - 1)


def _close_pairs(hashes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Index pairs (2, m) of the hashes that agree in the band's bits and differ in few others."""
    keys = _in_band(hashes, band)
    order = np.argsort(keys, kind="stable")
    keys, hashes = keys[order], hashes[order]
    found = [np.empty((2, 0), dtype=np.int64)]
    for step in range(1, len(hashes)):
        (left,) = np.nonzero(keys[step:] == keys[:-step])
        if not len(left):
            break
        apart = hashes[left] ^ hashes[left + step]
        close = left[np.unpackbits(apart.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= DISTANCE]
        found.append(np.stack([order[close], order[close + step]]))
    return np.concatenate(found, axis=1)
