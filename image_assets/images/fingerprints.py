"""Fingerprints of images: a thumbnail, and perceptual hashes of the image, its crops and rotations.

A crop or a rotation of a photograph has other hashes than the photograph. Therefore the hashes that the most frequent
edits of an image would have are computed in advance: near duplicates are then found by comparing hashes alone.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image

from image_assets.images.pixels import WHOLE

SIDE = 64  # of a thumbnail, in pixels; the aspect ratio is not kept
QUALITY = 95  # of its JPEG: the noise of stronger compression would hide differences between two shots
HASHED_SIDE = 32
FREQUENCIES = 8  # in each direction; 8 x 8 coefficients are 64 bits
CROP = 0.9  # the part of width and height that the cropped variants keep
ANGLE = 3.0  # degrees
ROTATED_CROP = 0.93  # what is left of width and height if the empty corners of a rotated image are cut off
GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Variant:
    """An edit of an image: the part that it keeps (1 for all), its offset from the center, and its rotation.

    Sizes and offsets are fractions of width and height, the angle is in degrees, counterclockwise.
    """

    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0
    angle: float = 0.0

    @property
    def matrix(self) -> np.ndarray:
        """Maps positions in the edited image to positions in the original: (2, 3), both from -0.5 to 0.5."""
        angle = np.radians(self.angle)
        turn = self.scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.column_stack([turn, [self.right, self.down]])


OFFSETS = tuple((1 - CROP) * step for step in (-1 / 2, -1 / 6, 1 / 6, 1 / 2, 0))
PARTS = ((1.0, 0.0), *((CROP, offset) for offset in OFFSETS))  # of a row or a column: its scale and offset
# The whole image, crops in a grid, and the one in the middle, which is the most frequent: their parts down and across.
STRAIGHT = ((0, 0), *((down, across) for down in range(1, 5) for across in range(1, 5)), (5, 5))
ROTATIONS = tuple(Variant(scale, angle=angle) for scale in (1.0, ROTATED_CROP) for angle in (ANGLE, -ANGLE))
VARIANTS = (*(Variant(PARTS[across][0], PARTS[across][1], PARTS[down][1]) for down, across in STRAIGHT), *ROTATIONS)
HASHES = len(VARIANTS) + 1  # the last one is that of the mirrored image
# Where the 64 coefficients of the straight variants are among those of all pairs of parts.
ROWS = FREQUENCIES * np.arange(len(PARTS))[:, None] + np.arange(FREQUENCIES)
PLACES = np.stack(
    [(ROWS[down][:, None] * FREQUENCIES * len(PARTS) + ROWS[across]).ravel() for down, across in STRAIGHT]
)
MIRRORING = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES).astype(np.float32)


@dataclass(frozen=True)
class Fingerprint:
    """An image's thumbnail as JPEG, and its HASHES hashes, eight bytes each."""

    thumbnail: bytes
    hashes: bytes

    @property
    def perceptual_hash(self) -> str:
        """The hash of the whole image, hexadecimal."""
        return self.hashes[:8].hex()

    @property
    def mirrored_hash(self) -> str:
        """The hash of the mirrored image, hexadecimal."""
        return self.hashes[-8:].hex()


def to_fingerprint(thumbnail: Image.Image) -> Fingerprint:
    """The fingerprint of an upright image, from its thumbnail as `to_thumbnail` returns it."""
    pixels = np.asarray(thumbnail)
    content = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="444")
    return Fingerprint(content, to_hashes(pixels).tobytes())


def to_thumbnail(image: Image.Image) -> Image.Image:
    """An RGB image of SIDE x SIDE pixels."""
    return WHOLE.resized(image if image.mode == "RGB" else image.convert("RGB"), SIDE)


def read_thumbnail(content: bytes) -> np.ndarray:
    """The pixels of a thumbnail, uint8 of shape (SIDE, SIDE, 3)."""
    return simplejpeg.decode_jpeg(content)


def to_hashes(thumbnail: np.ndarray) -> np.ndarray:
    """Perceptual hashes of the VARIANTS and of the mirrored image (pHash): uint64 of shape (HASHES,), big-endian.

    A hash tells for 64 low frequencies (discrete cosine transform) whether they are above the median.
    """
    gray = thumbnail.astype(np.float32) @ GRAY
    gray = (gray[::2, ::2] + gray[::2, 1::2] + gray[1::2, ::2] + gray[1::2, 1::2]) / 4
    cosines, rotations = _bases()
    straight = (cosines @ gray @ cosines.T).ravel()
    # Mirrored, the cosines of odd horizontal frequencies have the other sign.
    mirrored = straight[PLACES[0]] * MIRRORING
    # BLAS would share this product among threads, which wait for each other longer than they compute.
    rotated = np.einsum("rp,p->r", rotations, gray.ravel())
    coefficients = np.concatenate([straight[PLACES].ravel(), rotated, mirrored])
    coefficients = coefficients.reshape(HASHES, FREQUENCIES**2)
    middle = np.partition(coefficients, (31, 32), axis=1)[:, 31:33].mean(axis=1, keepdims=True)  # the median, faster
    return np.packbits(coefficients > middle, axis=1).view(">u8").ravel()


@cache
def _bases() -> tuple[np.ndarray, np.ndarray]:
    """Cosines of each of PARTS (32, 32), for rows and for columns, and those of ROTATIONS for all pixels (256, 1024).

    The cosines of an edited image are moved to where its pixels are in the original.
    """
    grid = (np.arange(HASHED_SIDE) + 0.5) / HASHED_SIDE
    cosines = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * grid)
    straight = np.concatenate([cosines @ _sampling(scale * (grid - 0.5) + offset) for scale, offset in PARTS])
    y, x = np.meshgrid(grid - 0.5, grid - 0.5, indexing="ij")
    plane = np.einsum("vy,ux->vuyx", cosines, cosines).reshape(FREQUENCIES**2, -1)
    rotated = []
    for variant in ROTATIONS:
        across, down = variant.matrix @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        pixels = np.einsum("py,px->pyx", _sampling(down), _sampling(across)).reshape(x.size, -1)
        rotated.append(plane @ pixels)
    return straight.astype(np.float32), np.concatenate(rotated).astype(np.float32)


def _sampling(positions: np.ndarray) -> np.ndarray:
    """The weights (p, 32) of pixels for linear interpolation at positions (p,) from -0.5 to 0.5."""
    places = np.clip((positions + 0.5) * HASHED_SIDE - 0.5, 0, HASHED_SIDE - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(HASHED_SIDE)), 0, None)
