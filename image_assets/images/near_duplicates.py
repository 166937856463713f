"""Images that look the same, as they are or mirrored, found by their perceptual hashes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASHED = ["image_id", "perceptual_hash", "mirrored_hash"]
BITS = 64
DISTANCE = 4  # bits in which the hashes of near duplicates may differ
BANDS = np.array_split(np.arange(BITS), DISTANCE + 1)


@dataclass(frozen=True)
class ImageHashes:
    """How some of `count` images look: hashes (m,) uint64, and which image (m,) each is of; several may be of one."""

    hashes: np.ndarray
    images: np.ndarray
    count: int

    def of(self, some: np.ndarray) -> "ImageHashes":
        """Those of the images that `some` (count,) bool marks."""
        selected = some[self.images]
        return ImageHashes(self.hashes[selected], self.images[selected], self.count)


def to_image_hashes(images: pd.DataFrame) -> ImageHashes:
    """The plain and the mirrored hash of each image; the columns are HASHED.

    Without a plain hash an image looks like its very copies only: 64 bits of its image_id stand for it.
    """
    images = images.reset_index(drop=True)
    plain = images["perceptual_hash"].where(images["perceptual_hash"].notna(), images["image_id"].str[: BITS // 4])
    texts = pd.concat([plain, images["mirrored_hash"].dropna()])
    hashes = np.array([int(text, 16) for text in texts], dtype=np.uint64)
    return ImageHashes(hashes, texts.index.to_numpy(dtype=np.int64), len(images))


def to_groups(image_hashes: ImageHashes) -> np.ndarray:
    """A group number (count,) for each image: chains of looks at most DISTANCE bits apart share one.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits (pigeonhole), so that
    only hashes that share a band are compared, not all pairs.
    """
    unique, index = np.unique(image_hashes.hashes, return_inverse=True)
    of_images = np.stack([index, len(unique) + image_hashes.images])
    left, right = np.concatenate([of_images, *(_close_pairs(unique, band) for band in BANDS)], axis=1)
    size = len(unique) + image_hashes.count
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][len(unique) :]


def reachable(image_hashes: ImageHashes, start: np.ndarray) -> np.ndarray:
    """Which images (count,) share a group with one of those that `start` (count,) bool marks, themselves included.

    Only what shares a band with what was reached last is compared, as far as the chains go: a few new
    images among many known ones cost little more than a look at everyone's bands.
    """
    found = last = start
    while last.any() and not found.all():
        near = last.copy()
        near[image_hashes.images[_share_a_band(image_hashes.hashes, last[image_hashes.images])]] = True
        near &= last | ~found
        groups = to_groups(image_hashes.of(near))
        joined = near & np.isin(groups, groups[last])
        found, last = found | joined, joined & ~found
    return found


def group_new_images(existing: pd.DataFrame, new: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers for known and new images; -1 for a known one that is in no new one's group."""
    image_hashes = to_image_hashes(pd.concat([existing.loc[:, HASHED], new.loc[:, HASHED]]))
    within = reachable(image_hashes, np.arange(image_hashes.count) >= len(existing))
    groups = np.where(within, to_groups(image_hashes.of(within)), -1)
    return groups[: len(existing)], groups[len(existing) :]


def _share_a_band(hashes: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which hashes agree in a whole band with one of `some` (m,) bool."""
    bands = [_in_band(hashes, band) for band in BANDS]
    return np.logical_or.reduce([np.isin(keys, keys[some]) for keys in bands])


def _in_band(hashes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """The hashes' bits (m,) in the band."""
    return (hashes >> np.uint64(band[0])) & np.uint64((1 << len(band)) - 1)


def _close_pairs(hashes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Index pairs (2, p) of the hashes that agree in the band's bits and differ in few others."""
    keys = _in_band(hashes, band)
    order = np.argsort(keys, kind="stable")
    keys, hashes = keys[order], hashes[order]
    found, left = [np.empty((2, 0), dtype=np.int64)], np.arange(len(hashes))
    for step in range(1, len(hashes)):
        # Sorted: where a hash and the one so many steps on share a band, so did those with fewer steps between.
        left = left[left + step < len(hashes)]
        left = left[keys[left] == keys[left + step]]
        if not len(left):
            break
        differing_bits = hashes[left] ^ hashes[left + step]
        close = left[np.unpackbits(differing_bits.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= DISTANCE]
        found.append(np.stack([order[close], order[close + step]]))
    return np.concatenate(found, axis=1)
