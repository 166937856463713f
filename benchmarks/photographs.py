"""The photographs for benchmarks: any number of files, no two with the same bytes."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "image-assets" / "benchmarks"
LABELS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
BASES = 240  # different generated pictures; further files, also of a folder, are numbered copies
SIZE = (500, 333)
SMALL_SIZE = (160, 107)
FALL_OFF, GRAIN = 1.4, 4.0  # chosen so that generated pictures have about 58 KB, like the photographs of tf_flowers
PER_FOLDER = 5_000
LONG_AGO = 1_600_000_000  # modification time of the files, long before any settle period


@dataclass(frozen=True)
class Photographs:
    """A kind of photograph: large (about 58 KB) or small (about 6 KB), generated or from the folder `source`."""

    small: bool = False
    source: str | None = None

    @property
    def folder(self) -> Path:
        """The folder where files of this kind are stored."""
        origin = f"photographs-{source_digest(self.source)}" if self.source else "generated"
        return CACHE / f"{origin}-{'small' if self.small else 'large'}"


SMALL = Photographs(small=True)  # for benchmarks with large tables


def to_noise(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture whose detail decreases with frequency, as in a photograph, plus some grain."""
    width, height = size
    random = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequencies[0, 0] = 1
    shared = random.standard_normal((height, width))
    channels = []
    for _ in range(3):
        white = np.fft.rfft2(0.9 * shared + 0.3 * random.standard_normal((height, width)))
        field = np.fft.irfft2(white / frequencies**FALL_OFF, (height, width))
        channels.append(128 + 48 * field / field.std() + random.normal(0, GRAIN, (height, width)))
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def to_jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """The picture as a JPEG with 4:2:0 subsampling, as most cameras write it."""
    content = BytesIO()
    picture.save(content, "JPEG", quality=quality, subsampling=2)
    return content.getvalue()


def numbered(content: bytes, number: int) -> bytes:
    """The JPEG with a number in a comment after its first marker: different bytes, same pixels."""
    comment = f"photograph {number}".encode()
    return content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]


def crop(picture: Image.Image, number: int) -> Image.Image:
    """A small crop of the picture, different for each number, so that small photographs look different too."""
    random = np.random.default_rng(number)
    scale = random.uniform(0.4, 0.8)
    width, height = int(picture.width * scale), int(picture.height * scale)
    left, top = random.integers(0, picture.width - width), random.integers(0, picture.height - height)
    return picture.resize(SMALL_SIZE, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


@lru_cache
def source_files(source: str) -> tuple[Path, ...]:
    """The photographs of a folder, shuffled, so that the first ones come from all subfolders.

    The name of a photograph's subfolder is its label.
    """
    files = sorted(file for file in Path(source).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise FileNotFoundError(f"PHOTOGRAPHS is {source}, which contains no JPEG files")
    Random(0).shuffle(files)
    return tuple(files)


@lru_cache
def source_digest(source: str) -> str:
    """A short hash of the folder and of the names, sizes and times of its photographs."""
    files = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in source_files(source)]
    return sha256(repr(files).encode()).hexdigest()[:8]


@lru_cache(maxsize=BASES)
def base(photographs: Photographs, place: int) -> tuple[str, bytes]:
    """The label and JPEG of one of the different pictures."""
    if photographs.source is None:
        return LABELS[place % len(LABELS)], to_jpeg(to_noise(place))
    files = source_files(photographs.source)
    file = files[place % len(files)]
    return file.parent.name, file.read_bytes()


@lru_cache(maxsize=BASES)
def base_pixels(photographs: Photographs, place: int) -> Image.Image:
    """The same picture, decoded."""
    return Image.open(BytesIO(base(photographs, place)[1])).convert("RGB")


def bases(photographs: Photographs) -> int:
    """The number of different pictures."""
    return len(source_files(photographs.source)) if photographs.source else BASES


def photograph(photographs: Photographs, number: int) -> tuple[str, bytes]:
    """The path below the landing folder and the bytes of the file with this number."""
    place = number % bases(photographs)
    label, content = base(photographs, place)
    if photographs.small:
        content = to_jpeg(crop(base_pixels(photographs, place), number))
    return f"{label}/{number // PER_FOLDER:03d}/{number:07d}.jpg", numbered(content, number)


def write(photographs: Photographs, folder: Path, numbers: Sequence[int]) -> None:
    """Write the files with these numbers into the folder, with an old modification time."""
    for number in numbers:
        name, content = photograph(photographs, number)
        file = folder / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            os.utime(file, (LONG_AGO + number, LONG_AGO + number))


def landing_of(photographs: Photographs, count: int, processes: int = 2) -> Path:
    """A landing folder with exactly `count` photographs; it is reused, and read once so that it is cached in memory."""
    folder = photographs.folder / str(count)
    finished = folder.with_suffix(".finished")
    if not finished.exists():
        with ProcessPoolExecutor(processes) as pool:
            parts = [range(start, min(start + 1000, count)) for start in range(0, count, 1000)]
            list(pool.map(write, [photographs] * len(parts), [folder] * len(parts), parts))
        finished.touch()
    remove_beyond(folder, count)
    for file in files_in(folder):
        file.read_bytes()
    return folder


def number_of(file: Path) -> int:
    """The number in a file's name."""
    return int(re.sub(r"\D", "", file.stem))


def files_in(folder: Path) -> Iterator[Path]:
    """The photographs below a folder."""
    return folder.rglob("*.jpg")


def remove_beyond(folder: Path, count: int) -> None:
    """Delete the files that an earlier benchmark added."""
    for file in files_in(folder):
        if number_of(file) >= count:
            file.unlink()
