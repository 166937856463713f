"""Whether two images are the same photograph, edited, or two shots of the same scene.

The second image is aligned with the first (inverse of the crop, rotation and brightness of an edit), then compared:

- An edit shows only what its original shows, apart from empty corners. A camera or a part that moved shows something
  new at one border.
- In an edit, everything moves in the same way. In another shot, the part moves and the background does not.
- An edit has the same colors, after one tone curve for all channels. A scratch, or another color, remains.
"""

import numpy as np

from image_assets.images.fingerprints import GRAY, SIDE

COARSE_STEPS, FINE_STEPS = 7, 4  # of the alignment, at half and at full resolution
MAX_STEP = 0.05  # of the alignment, in widths and heights
PAIRS = 64  # compared at once: their pixels fit into a processor's cache
COARSE_ERROR = 0.5  # of the contrast: pairs with more after the coarse alignment are not aligned any further
# How far an edit may seem to reach beyond its original: the alignment's error, and some more.
MAX_OVERHANG = 0.35 / SIDE
MAX_ERROR = 0.25  # of the contrast
MAX_SHIFT = 0.4  # pixels by which a block may be away from where it should be
MAX_DIFFERENCE = 5.0  # of a small block, in times the usual noise
TOLERANCE = 2.5  # factor of both where the tone curve cannot be exact: clipped highlights and empty corners
NOISE, NOISE_AT_EDGES = 2.0, 0.15  # gray levels, and their share of the gradient
CLIPPED, BLACK = 245, 3  # values from and up to which the original value is lost
CORNER = 0.75 / SIDE  # how far beyond the original's border pixels count as those of an empty corner
FILL = 40  # gray levels from black or white that an empty corner may have
MIN_EMPTY, MIN_CORNERS = 0.6, 8  # share of the pixels beyond the border that are empty, and their least number
TEXTURE = 3.0  # standard deviation, in gray levels, from which a large block is not flat
MIN_TEXTURED = 0.5  # share of such blocks; photographs have 60 to 100 percent
SMALL, LARGE = 4, 8  # sides of blocks, in pixels

_grids = {
    side: tuple(
        axis.ravel().astype(np.float32)
        for axis in np.meshgrid((np.arange(side) + 0.5) / side - 0.5, (np.arange(side) + 0.5) / side - 0.5)
    )
    for side in (SIDE // 2, SIDE)
}
_CORNERS = np.array([[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5]])


def same_photographs(first: np.ndarray, second: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Which pairs (n,) of thumbnails show the same photograph.

    Args:
        first: Thumbnails, uint8 of shape (n, SIDE, SIDE, 3).
        second: The thumbnails that they are compared with, mirrored where necessary.
        matrices: A guess for each pair (n, 2, 3) of where positions in the second image are in the first one.
    """
    same = (first == second).all(axis=(1, 2, 3))
    unequal = np.flatnonzero(~same)
    same[same] = _is_textured(first[same].astype(np.float32) @ GRAY)  # nothing to align
    for start in range(0, len(unequal), PAIRS):
        part = unequal[start : start + PAIRS]
        same[part] = _same(first[part].astype(np.float32), second[part].astype(np.float32), matrices[part])
    return same


def _same(first: np.ndarray, second: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    gray_first, gray_second = first @ GRAY, second @ GRAY
    matrices, error = _aligned(_halved(gray_first), _halved(gray_second), matrices, COARSE_STEPS)
    same = (error < COARSE_ERROR) & _is_textured(gray_first) & _is_textured(gray_second)
    left = np.flatnonzero(same)
    if not len(left):
        return same
    first, second = first[left], second[left]
    matrices, _ = _aligned(gray_first[left], gray_second[left], matrices[left], FINE_STEPS)
    # Either image may be the edit of the other one.
    inside, filled = _contained(gray_second[left], matrices)
    other_inside, other_filled = _contained(gray_first[left], _inverse(matrices))
    error, shift, difference, clipped = _differences(first, second, matrices)
    tolerance = np.where((clipped > 0.01) | filled | other_filled, TOLERANCE, 1.0)
    same[left] = (
        (inside | filled | other_inside | other_filled)
        & (error <= MAX_ERROR)
        & (shift <= MAX_SHIFT * tolerance)
        & (difference <= MAX_DIFFERENCE * tolerance)
    )
    return same


def _aligned(first: np.ndarray, second: np.ndarray, matrices: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Better matrices (p, 2, 3), and the remaining errors (p,) as shares of the contrast.

    Lucas-Kanade: the difference of gray images (p, side, side) is explained by an affine movement, a gain and an
    offset. Pixels that differ much have little weight, so that a changed part does not move the rest.
    """
    side = first.shape[1]
    x, y = _grids[side]
    down, right = np.gradient(first, axis=(1, 2))
    stacked = np.stack([first, right * side, down * side], axis=-1)
    matrices = matrices.astype(np.float64).copy()
    wanted = second.reshape(len(second), -1)
    residual = error = None
    for _ in range(steps):
        sampled, within = _sampled(stacked, *_positions(matrices, x, y))
        value, right, down = np.moveaxis(sampled, -1, 0)
        weight = (within & (wanted < CLIPPED) & (value < CLIPPED)).astype(np.float32)
        if residual is not None:
            usual = 3 * np.median(np.abs(residual), axis=1, keepdims=True) + 4
            weight *= np.minimum(1, usual / np.maximum(np.abs(residual), 1e-6)) ** 2
        terms = np.stack([right * x, right * y, right, down * x, down * y, down, value, np.ones_like(value)], axis=-1)
        weighted = (terms * weight[..., None]).transpose(0, 2, 1)
        normal = (weighted @ terms).astype(np.float64)
        # A little is added to the diagonal: flat images would make the system singular.
        normal[:, range(8), range(8)] += [*[1e-3 * side**2] * 6, 1e-2, 1e-3]
        solved = np.linalg.solve(normal, (weighted @ wanted[..., None]).astype(np.float64))[..., 0]
        gain, offset = np.clip(solved[:, 6:7], 0.2, 5.0), solved[:, 7:]
        matrices += np.clip(solved[:, :6] / gain, -MAX_STEP, MAX_STEP).reshape(-1, 2, 3)
        residual = wanted - (gain * value + offset).astype(np.float32)
        error = np.sqrt((residual**2 * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1))
    return matrices, error / np.maximum(_contrast(second), 0.1)


def _differences(
    first: np.ndarray, second: np.ndarray, matrices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What differs after alignment, each (p,).

    The error as a share of the contrast, the greatest shift of a large block in pixels, the greatest difference of a
    small block in times the noise, and the share of clipped pixels.
    """
    pairs = len(first)
    sampled, within = _sampled(first, *_positions(matrices, *_grids[SIDE]))
    sampled, outside = sampled.reshape(first.shape), ~within.reshape(pairs, SIDE, SIDE, 1)
    clipped = (second >= CLIPPED) | (sampled >= CLIPPED)
    lost = _dilated(outside, 2) | _dilated(clipped, 1) | (second <= BLACK) | (sampled <= BLACK)
    weight = (~lost).astype(np.float32)
    # Blurred, because copies of other sizes differ in sharpness.
    wanted, value = _blurred(second), _tone_mapped(_blurred(sampled), _blurred(second), weight)
    residual = (wanted - value) * weight
    down, right = (gradient * weight for gradient in np.gradient(value, axis=(1, 2)))
    energy = _block_sums((right**2 + down**2).sum(axis=-1), LARGE) + 3 * LARGE**2 * NOISE**2
    shift = np.hypot(*(_block_sums((residual * one).sum(axis=-1), LARGE) for one in (right, down))) / energy
    # Small blocks in gray, large ones in each channel: compression keeps less detail of colors.
    gray = (residual @ GRAY, weight.min(axis=-1), np.sqrt((right**2 + down**2) @ GRAY))
    colors = (residual, weight, np.sqrt(right**2 + down**2))
    difference = np.maximum(_block_difference(*gray, SMALL), _block_difference(*colors, LARGE))
    count = np.maximum(weight.sum(axis=(1, 2, 3)), 1)
    mean = (wanted * weight).sum(axis=(1, 2, 3)) / count
    contrast = np.sqrt(((wanted - mean[:, None, None, None]) ** 2 * weight).sum(axis=(1, 2, 3)) / count)
    error = np.sqrt((residual**2).sum(axis=(1, 2, 3)) / count) / np.maximum(contrast, NOISE)
    return error, shift.max(axis=(1, 2)), difference, clipped.mean(axis=(1, 2, 3))


def _block_difference(residual: np.ndarray, weight: np.ndarray, gradient: np.ndarray, side: int) -> np.ndarray:
    """The greatest mean residual (p,) of a block in times the noise; blocks of which little is left do not count."""
    counts = _block_sums(weight, side)
    some = np.maximum(counts, 1)
    noise = NOISE + NOISE_AT_EDGES * _block_sums(gradient, side) / some
    difference = np.abs(_block_sums(residual, side)) / some / noise
    return np.where(counts >= side**2 / 3, difference, 0).reshape(len(residual), -1).max(axis=1)


def _tone_mapped(value: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The values after the cubic tone curve, the same for all channels, that brings them closest to the wanted ones."""
    pairs = len(value)
    scaled = (value / 255).reshape(pairs, -1, 1)
    powers = scaled ** np.arange(4, dtype=np.float32)
    weighted = (powers * weight.reshape(pairs, -1, 1)).transpose(0, 2, 1)
    # Where values do not determine the curve, it stays close to a straight line.
    prior = np.diag([5e-3, 5e-3, 5, 5])
    normal = (weighted @ powers).astype(np.float64) + prior
    right = (weighted @ wanted.reshape(pairs, -1, 1)).astype(np.float64) + (prior @ [0, 255, 0, 0])[:, None]
    curve = np.linalg.solve(normal, right).astype(np.float32)
    return (powers @ curve).reshape(value.shape)


def _contained(second: np.ndarray, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the gray second image shows only what is in the first (p,), and whether the rest is black or white (p,).

    Rotating an image leaves such empty corners.
    """
    reach = np.abs(matrices @ np.vstack([_CORNERS, np.ones(4)])).max(axis=(1, 2)) - 0.5
    x, y = _positions(matrices, *_grids[SIDE])
    beyond = np.maximum(np.abs(x), np.abs(y)) > 0.5 + CORNER
    values = second.reshape(len(second), -1)
    enough = np.maximum(MIN_EMPTY * beyond.sum(axis=1), MIN_CORNERS)
    empty = np.maximum(((values <= FILL) & beyond).sum(axis=1), ((values >= 255 - FILL) & beyond).sum(axis=1))
    return reach <= MAX_OVERHANG, empty >= enough


def _positions(matrices: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where positions (n,) of the second image are in the first: (p, n) each."""
    across, down = np.moveaxis(matrices.astype(np.float32)[..., None], 1, 0)
    return across[:, 0] * x + across[:, 1] * y + across[:, 2], down[:, 0] * x + down[:, 1] * y + down[:, 2]


def _sampled(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated values (p, n, c) of images (p, side, side, c) at positions (p, n), and which of these are inside."""
    pairs, side, _, channels = images.shape
    inside = (np.abs(x) <= 0.5) & (np.abs(y) <= 0.5)
    column = np.clip((x + 0.5) * side - 0.5, 0, side - 1.001)
    row = np.clip((y + 0.5) * side - 0.5, 0, side - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, down = (column - left)[..., None], (row - top)[..., None]
    pixels = images.reshape(-1, channels)
    place = np.arange(pairs, dtype=np.int32)[:, None] * side**2 + top * side + left
    above = pixels[place] * (1 - right) + pixels[place + 1] * right
    below = pixels[place + side] * (1 - right) + pixels[place + side + 1] * right
    return above * (1 - down) + below * down, inside


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """The matrices (p, 2, 3) of the opposite direction."""
    square = np.linalg.inv(np.concatenate([matrices, np.tile([[[0.0, 0.0, 1.0]]], (len(matrices), 1, 1))], axis=1))
    return square[:, :2]


def _is_textured(gray: np.ndarray) -> np.ndarray:
    """Which images (p,) show enough to tell an edit from another shot: not a part or a disc on a plain ground."""
    count = LARGE**2
    mean, square = _block_sums(gray, LARGE) / count, _block_sums(gray**2, LARGE) / count
    return (square - mean**2 > TEXTURE**2).mean(axis=(1, 2)) >= MIN_TEXTURED


def _contrast(gray: np.ndarray) -> np.ndarray:
    """Standard deviations (p,) of images."""
    return gray.reshape(len(gray), -1).std(axis=1)


def _halved(images: np.ndarray) -> np.ndarray:
    """Images (p, side, side) of half the side."""
    return (images[:, ::2, ::2] + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]) / 4


def _blurred(images: np.ndarray) -> np.ndarray:
    """Images (p, side, side, c) after a Gaussian blur of one pixel."""
    from scipy.ndimage import correlate1d

    kernel = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
    return correlate1d(correlate1d(images, kernel, axis=1, mode="nearest"), kernel, axis=2, mode="nearest")


def _dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (p, side, side, c) grown by some pixels in each direction."""
    from scipy.ndimage import maximum_filter1d

    size = 2 * pixels + 1
    return maximum_filter1d(maximum_filter1d(mask, size, axis=1), size, axis=2)


def _block_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over square blocks: (p, blocks, blocks, …) of (p, SIDE, SIDE, …)."""
    blocks = SIDE // side
    return values.reshape(len(values), blocks, side, blocks, side, *values.shape[3:]).sum(axis=(2, 4))
