"""Near duplicates: images that look the same, plain or mirrored, found by their perceptual hashes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASHED = ["image_id", "perceptual_hash", "mirrored_hash"]
BITS = 64
DISTANCE = 4  # bits in which hashes of near duplicates may differ
BANDS = np.array_split(np.arange(BITS), DISTANCE + 1)


@dataclass(frozen=True)
class ImageHashes:
    """Hashes (m,) uint64 of `count` images, and the image number (m,) of each; an image may have several."""

    hashes: np.ndarray
    images: np.ndarray
    count: int

    def of(self, some: np.ndarray) -> "ImageHashes":
        """The hashes of the images selected by `some` (count,) bool."""
        selected = some[self.images]
        return ImageHashes(self.hashes[selected], self.images[selected], self.count)


def to_image_hashes(images: pd.DataFrame) -> ImageHashes:
    """The plain and the mirrored hash of each image; the columns are HASHED.

    An image without a plain hash matches exact copies only: 64 bits of its image_id are used instead.
    """
    images = images.reset_index(drop=True)
    plain = images["perceptual_hash"].where(images["perceptual_hash"].notna(), images["image_id"].str[: BITS // 4])
    texts = pd.concat([plain, images["mirrored_hash"].dropna()])
    hashes = np.array([int(text, 16) for text in texts], dtype=np.uint64)
    return ImageHashes(hashes, texts.index.to_numpy(dtype=np.int64), len(images))


def to_groups(image_hashes: ImageHashes) -> np.ndarray:
    """A group number (count,) for each image: images linked by hashes at most DISTANCE bits apart share one.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits (pigeonhole principle), so only hashes
    that share a band are compared, not all pairs.
    """
    unique, index = np.unique(image_hashes.hashes, return_inverse=True)
    of_images = np.stack([index, len(unique) + image_hashes.images])
    left, right = np.concatenate([of_images, *(_close_pairs(unique, band) for band in BANDS)], axis=1)
    size = len(unique) + image_hashes.count
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][len(unique) :]


def reachable(image_hashes: ImageHashes, start: np.ndarray) -> np.ndarray:
    """Which images (count,) share a group with one of those selected by `start` (count,) bool, which are included.

    Each round compares only images that share a band with those reached last. A few new images among many existing
    ones therefore cost little more than one scan of all bands.
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
    """Group numbers for existing and new images; -1 for existing ones that share no group with a new one."""
    image_hashes = to_image_hashes(pd.concat([existing.loc[:, HASHED], new.loc[:, HASHED]]))
    within = reachable(image_hashes, np.arange(image_hashes.count) >= len(existing))
    groups = np.where(within, to_groups(image_hashes.of(within)), -1)
    return groups[: len(existing)], groups[len(existing) :]


def _share_a_band(hashes: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which hashes (m,) agree in a whole band with one of those selected by `some` (m,) bool."""
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
        # Sorted: if a hash shares a band with the one `step` places on, it also does with all in between.
        left = left[left + step < len(hashes)]
        left = left[keys[left] == keys[left + step]]
        if not len(left):
            break
        differing_bits = hashes[left] ^ hashes[left + step]
        close = left[np.unpackbits(differing_bits.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= DISTANCE]
        found.append(np.stack([order[close], order[close + step]]))
    return np.concatenate(found, axis=1)
