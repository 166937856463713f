"""Generated sample images, for trying everything without photographs of your own.

Five labels of drawn pictures, colorful and noisy like photographs. They include two broken files, a near duplicate
(smaller and more compressed) and three images without a label.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from image_assets.images.features import to_features

MIN_DISTANCE_BITS = 8  # between the perceptual hashes of two different images
SIZES = ((240, 180), (270, 200), (300, 225), (320, 240), (360, 270), (225, 300))
UNLABELED = ("checkers", "circles", "triangles")
DUPLICATED = "circles"


def stripes(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Parallel bars across the whole image."""
    across, _ = _turned_grid(rng, size, rng.uniform(0, np.pi))
    return _to_mask(np.sin(across))


def checkers(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Alternating light and dark squares."""
    across, along = _turned_grid(rng, size, rng.uniform(0, np.pi / 2))
    return _to_mask(np.sin(across) * np.sin(along))


def circles(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """One to three large rings."""
    mask = Image.new("L", size)
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.18, 0.4) * min(size)
        x, y = rng.uniform(0.25, 0.75, 2) * size
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(mask).ellipse(box, outline=255, width=int(radius * rng.uniform(0.15, 0.4)))
    return mask


def triangles(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """One to three large filled triangles."""
    mask = Image.new("L", size)
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.25, 0.45) * min(size)
        center = rng.uniform(0.3, 0.7, 2) * size
        angles = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
        corners = center + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return mask


def spots(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Many small discs."""
    mask = Image.new("L", size)
    for _ in range(rng.integers(40, 90)):
        radius = rng.uniform(0.02, 0.05) * min(size)
        x, y = rng.uniform(0, 1, 2) * size
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


PATTERNS: tuple[Callable[[np.random.Generator, tuple[int, int]], Image.Image], ...] = (
    checkers,
    circles,
    spots,
    stripes,
    triangles,
)


def write_sample_images(folder: Path, *, per_label: int = 60, seed: int = 7) -> None:
    """Writes the sample images; the same seed gives the same bytes, and existing files stay untouched."""
    files = _distinct_images(per_label, seed)
    original = files[f"{DUPLICATED}/{DUPLICATED}_000.jpg"]
    files[f"{DUPLICATED}/{DUPLICATED}_000_copy.jpg"] = _smaller_copy(original)
    half = files["stripes/stripes_000.jpg"]
    files["stripes/cut_in_half.jpg"] = half[: len(half) // 2]
    files["spots/not_an_image.jpg"] = b"This is a text file with the name of an image.\n"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rewriting would change the modification time, and so make the file count as changed.
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _distinct_images(per_label: int, seed: int) -> dict[str, bytes]:
    """Encoded images by name; one that resembles an earlier image or its mirror image is drawn again."""
    names = [(index, number) for index in range(len(PATTERNS)) for number in range(per_label)]
    files: dict[str, bytes] = {}
    hashes: list[int] = []
    for index, number in names:
        label = PATTERNS[index].__name__
        kind = {3: "png", 7: "webp"}.get(number % 10, "jpg")
        files[f"{label}/{label}_{number:03}.{kind}"] = _distinct_image((seed, index, number), kind, hashes)
    for number, label in enumerate(UNLABELED):
        index = [pattern.__name__ for pattern in PATTERNS].index(label)
        files[f"unlabelled_{number}.jpg"] = _distinct_image((seed, index, per_label + number), "jpg", hashes)
    return files


def _distinct_image(entropy: tuple[int, int, int], kind: str, hashes: list[int]) -> bytes:
    rng = np.random.default_rng(entropy)
    while True:
        content = _encoded(_drawn(rng, PATTERNS[entropy[1]]), kind)
        features = to_features(content)
        perceptual_hash, mirrored_hash = int(features.perceptual_hash, 16), int(features.mirrored_hash, 16)
        if all((perceptual_hash ^ other).bit_count() >= MIN_DISTANCE_BITS for other in hashes):
            hashes += [perceptual_hash, mirrored_hash]
            return content


def _drawn(
    rng: np.random.Generator, pattern: Callable[[np.random.Generator, tuple[int, int]], Image.Image]
) -> Image.Image:
    """The pattern in one color on a cloudy background, with blur, noise and uneven light."""
    width, height = SIZES[rng.integers(len(SIZES))]
    # Drawn at twice the size for smooth edges.
    mask = pattern(rng, (2 * width, 2 * height)).resize((width, height), Image.Resampling.BOX)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    background = _clouds(rng, width, height)
    color = rng.uniform(0, 255, 3)
    while abs(color.mean() - background.mean()) < 60:
        color = rng.uniform(0, 255, 3)
    share = np.asarray(mask, np.float64)[:, :, None] / 255 * rng.uniform(0.75, 1)
    pixels = background * (1 - share) + color * share
    light = np.linspace(1, rng.uniform(0.6, 1), width)[None, :, None]
    noise = rng.normal(0, rng.uniform(2, 9), pixels.shape)
    return Image.fromarray(np.clip(pixels * light + noise, 0, 255).astype(np.uint8))


def _clouds(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    patches = rng.uniform(40, 215, 3) + rng.normal(0, 30, (4, 5, 3))
    clouds = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8))
    return np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _turned_grid(rng: np.random.Generator, size: tuple[int, int], angle: float) -> tuple[np.ndarray, np.ndarray]:
    period = rng.uniform(0.08, 0.2) * min(size)
    y, x = np.mgrid[: size[1], : size[0]] * (2 * np.pi / period)
    across = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 2 * np.pi)
    along = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(0, 2 * np.pi)
    return across, along


def _to_mask(waves: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(waves > 0, 255, 0).astype(np.uint8))


def _encoded(picture: Image.Image, kind: str, quality: int = 88) -> bytes:
    content = BytesIO()
    picture.save(content, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[kind], quality=quality)
    return content.getvalue()


def _smaller_copy(content: bytes) -> bytes:
    with Image.open(BytesIO(content)) as picture:
        return _encoded(picture.resize((picture.width * 9 // 10, picture.height * 9 // 10)), "jpg", quality=70)
