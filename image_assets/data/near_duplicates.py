"""Images that look the same, found by their perceptual hashes."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BITS = 64
DISTANCE = 4  # bits in which the hashes of near duplicates may differ


def to_numbers(hashes: list[str]) -> np.ndarray:
    """Hexadecimal hashes as an array (n,) of uint64."""
    return np.array([int(text, 16) for text in hashes], dtype=np.uint64)


def to_groups(hashes: np.ndarray, distance: int = DISTANCE) -> np.ndarray:
    """A group number (n,) for each hash (n,) uint64: chains of hashes at most `distance` bits apart share one.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits (pigeonhole), so that
    only hashes that share a band are compared, not all pairs.
    """
    unique, index = np.unique(hashes, return_inverse=True)
    edges = [_close_pairs(unique, band, distance) for band in np.array_split(np.arange(BITS), distance + 1)]
    left, right = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(unique), len(unique)))
    return connected_components(graph, directed=False)[1][index]


def _close_pairs(hashes: np.ndarray, band: np.ndarray, distance: int) -> np.ndarray:
    """Index pairs (2, m) of the hashes that agree in the band's bits and differ in few others."""
    keys = (hashes >> np.uint64(band[0])) & np.uint64((1 << len(band)) - 1)
    order = np.argsort(keys, kind="stable")
    keys, hashes = keys[order], hashes[order]
    found = [np.empty((2, 0), dtype=np.int64)]
    for step in range(1, len(hashes)):
        (left,) = np.nonzero(keys[step:] == keys[:-step])
        if not len(left):
            break
        apart = hashes[left] ^ hashes[left + step]
        close = left[np.unpackbits(apart.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= distance]
        found.append(np.stack([order[close], order[close + step]]))
    return np.concatenate(found, axis=1)
