"""Validates a contestant's output; a run counts only if its output is right."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable
from PIL import Image

from benchmarks.photographs import files_in, number_of
from benchmarks.task import to_sha256

SEEN = 200  # images whose pixels are compared, evenly spaced
NATIVE_TOLERANCE = 8.0  # mean difference of gray values allowed for a peer with a different formula for gray


class WrongOutput(ValueError):
    """The contestant's output is not what the task requires."""


def rows_of(folder: Path) -> Iterator[tuple[int, bytes]]:
    """The number and content of each image in a Delta table or a folder of Parquet files."""
    delta = (folder / "_delta_log").is_dir()
    files = DeltaTable(folder).file_uris() if delta else [str(file) for file in folder.rglob("*.parquet")]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=["path", "content"]):
            for path, content in zip(batch["path"], batch["content"], strict=True):
                yield number_of(Path(path.as_py())), content.as_py()


def require_same_numbers(found: list[int], landing: Path) -> None:
    """Raise WrongOutput unless each file of the landing folder occurs exactly once."""
    wanted = sorted(number_of(file) for file in files_in(landing))
    if sorted(found) != wanted:
        raise WrongOutput(
            f"{len(found):,} rows of {len(set(found)):,} images: expected one row for each of {len(wanted):,}"
        )


def require_ingested(output: Path, landing: Path) -> None:
    """Raise WrongOutput unless every file occurs exactly once, with the same bytes."""
    hashes = {number_of(file): to_sha256(file.read_bytes()) for file in files_in(landing)}
    found = []
    for number, content in rows_of(output):
        found.append(number)
        if hashes.get(number) != to_sha256(content):
            raise WrongOutput(f"the bytes of photograph {number} differ from its file")
    require_same_numbers(found, landing)


def to_gray_pixels(content: bytes, kernel: str) -> np.ndarray:
    """Pillow's gray pixels of a photograph: converted from color as usual, or decoded directly to gray (`own`)."""
    with Image.open(BytesIO(content)) as image:
        if kernel == "own":
            image.draft("L", None)
        return np.asarray(image.convert("L"), dtype=np.int16)


def require_gray(output: Path, landing: Path, kernel: str) -> None:
    """Raise WrongOutput unless every image occurs exactly once and the checked ones have the right gray pixels."""
    files = {number_of(file): file for file in files_in(landing)}
    checked = set(sorted(files)[:: max(1, len(files) // SEEN)])
    found = []
    for number, content in rows_of(output):
        found.append(number)
        if number in checked:
            difference = np.abs(
                np.asarray(Image.open(BytesIO(content)), dtype=np.int16)
                - to_gray_pixels(files[number].read_bytes(), kernel)
            )
            if difference.mean() > (NATIVE_TOLERANCE if kernel == "native" else 0):
                raise WrongOutput(f"photograph {number}: gray pixels differ by up to {difference.max()}")
    require_same_numbers(found, landing)


def require_features(output: Path, landing: Path) -> None:
    """Raise WrongOutput unless every image occurs exactly once, with the right label, width and height."""
    files = {number_of(file): file for file in files_in(landing)}
    table = DeltaTable(output).to_pyarrow_table(columns=["path", "label", "width", "height"]).to_pylist()
    for row in table:
        file = files[number_of(Path(row["path"]))]
        with Image.open(file) as image:
            if (row["label"], row["width"], row["height"]) != (file.relative_to(landing).parts[0], *image.size):
                raise WrongOutput(f"{row}: wrong label or size")
    require_same_numbers([number_of(Path(row["path"])) for row in table], landing)
