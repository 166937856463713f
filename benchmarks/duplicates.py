"""How many edits are recognised, how many other pairs are joined, and how long a million images take.

It compares with no one else, so it is no part of `make bench`: `python -m benchmarks.duplicates <folder>`.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.photographs import source_files, to_jpeg
from image_assets.images.fingerprints import HASHES, VARIANTS, Fingerprint, read_thumbnail, to_fingerprint, to_thumbnail
from image_assets.images.near_duplicates import to_candidates
from image_assets.images.same_photograph import same_photographs

BICUBIC = Image.Resampling.BICUBIC
MILLION = 1_000_000
EDITS = {
    "resized to 50 %": lambda image: image.resize((image.width // 2, image.height // 2), BICUBIC),
    "recompressed": lambda image: image,
    "mirrored": ImageOps.mirror,
    "cropped to 90 %": lambda image: image.crop(
        (image.width // 20, image.height // 20, image.width * 19 // 20, image.height * 19 // 20)
    ),
    "rotated by 3°": lambda image: image.rotate(3, BICUBIC),
    "brightened by 30 %": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
}


def fingerprints(images: Iterable[Image.Image]) -> list[Fingerprint]:
    """The images' fingerprints."""
    return [to_fingerprint(to_thumbnail(image)) for image in images]


def same_pairs(images: Sequence[Fingerprint]) -> np.ndarray:
    """The pairs (2, p) of images that show the same photograph."""
    hashes = np.stack([np.frombuffer(image.hashes, dtype=">u8") for image in images])
    found = to_candidates(hashes, np.ones(len(images), dtype=bool))
    thumbnails = np.stack([read_thumbnail(image.thumbnail) for image in images])
    second = thumbnails[found.second]
    second[found.mirrored] = second[found.mirrored, :, ::-1]
    matrices = np.stack([variant.matrix for variant in VARIANTS])[found.variant]
    same = found.of(same_photographs(thumbnails[found.first], second, matrices))
    return np.stack([same.first, same.second])


def recall(files: Sequence[Path], name: str) -> float:
    """The share of photographs whose edit is recognised; the edit is saved as a JPEG of quality 75."""
    originals = [Image.open(file).convert("RGB") for file in files]
    edits = [Image.open(BytesIO(to_jpeg(EDITS[name](image), 75))) for image in originals]
    first, second = same_pairs(fingerprints([*originals, *edits]))
    return float((np.abs(first - second) == len(files)).sum() / len(files))


def seconds_for_a_million() -> tuple[float, int]:
    """Seconds of CPU time to compare random hashes with 50,000 near duplicates, and how many of these are found."""
    chance = np.random.default_rng(0)
    hashes = chance.integers(0, 2**64, (MILLION, HASHES), dtype=np.uint64)
    edits, flipped = np.arange(50_000), np.uint64(0)
    for _ in range(4):
        flipped = flipped | np.uint64(1) << chance.integers(0, 64, len(edits), dtype=np.uint64)
    hashes[edits + MILLION // 2, 0] = hashes[edits, 3] ^ flipped
    started = time.process_time()
    found = to_candidates(hashes, np.ones(MILLION, dtype=bool))
    return time.process_time() - started, int((found.second == found.first + MILLION // 2).sum())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates", description=__doc__)
    parser.add_argument("photographs", help="a folder of photographs")
    parser.add_argument("--edited", type=int, default=100, help="number of photographs to edit")
    chosen = parser.parse_args()
    files = source_files(chosen.photographs)
    for name in EDITS:
        print(f"{name}: {recall(files[: chosen.edited], name):.0%} found", flush=True)
    first, second = same_pairs(fingerprints(Image.open(file) for file in files))
    print(f"{len(files):,} photographs: {len(first):,} pairs joined")
    for one, other in zip(first, second, strict=True):
        print(f"  {files[one]} {files[other]}")
    seconds, found = seconds_for_a_million()
    print(f"{MILLION:,} images: {seconds:.0f} s of CPU time, {found:,} of 50,000 planted pairs found")


if __name__ == "__main__":
    main()
