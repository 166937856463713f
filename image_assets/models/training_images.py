"""A cache's images as a rank reads them: by Petastorm, decoded on its threads, in batches of equal length."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from image_assets.images.cached_pixels import to_cached_pixels
from image_assets.images.pixels import DEFAULT, Crop, Reading
from resources.delta.row_groups import Color, Content

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

# The decoded column: name, type, shape, and whether it may be null. Bytes, because Petastorm moves them much
# faster than arrays of numbers.
DECODED_FIELDS = [("pixels", np.bytes_, (), False)]

SCALE = (0.5, 1.0)  # of the image's area
RATIO = (3 / 4, 4 / 3)  # width to height
MIRRORED_SHARE = 0.5

READ_BATCH_SIZE = 32
ID_COLUMNS = ["image_id", "label_index"]
QUEUED_ROW_GROUPS = 4  # decoded row groups, some megabytes each
SHUFFLE_BUFFER_ROWS = 256  # 38 MB as pixels


@dataclass(frozen=True)
class Augmentation:
    """Random crops and mirroring, determined by the image's content, the seed and the epoch."""

    seed: int
    epoch: int

    def crop(self, image_id: str) -> Crop:
        """The part of the image to use, and whether it is mirrored.

        Szegedy et al., Going Deeper with Convolutions (2014), with the parameters of torchvision's RandomResizedCrop
        except for the smallest area.
        """
        rng = np.random.default_rng((self.seed, self.epoch, int(image_id[:16], 16)))
        # Logarithmic, so that 3:4 and 4:3 are equally likely.
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        area = rng.uniform(*SCALE)
        width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return Crop(left, top, left + width, top + height, mirrored=bool(rng.random() < MIRRORED_SHARE))


@dataclass(frozen=True)
class Decoding:
    """How cached content is decoded to pixels."""

    side_pixels: int
    content: Content = "original"
    color: Color = "rgb"
    augmentation: Augmentation | None = None
    reading: Reading = DEFAULT

    def pixels(self, image_id: str, cached: bytes) -> bytes:
        """The pixels (side, side, 3) uint8 of one row, as bytes."""
        crop = self.augmentation.crop(image_id) if self.augmentation else None
        return to_cached_pixels(cached, self.side_pixels, self.content, self.color, crop, self.reading).tobytes()


def to_decoded_rows(rows: pd.DataFrame, decoding: Decoding, skipped: frozenset[str]) -> pd.DataFrame:
    """A row group's rows with `pixels` instead of their content; empty bytes if the image is skipped.

    Raises for an image that cannot be decoded: caches hold none.
    """
    pixels = [
        b"" if image_id in skipped else decoding.pixels(cast("str", image_id), content)
        for image_id, content in zip(rows["image_id"], rows["content"], strict=True)
    ]
    return rows.drop(columns="content").assign(pixels=pixels)


@dataclass(frozen=True)
class DecodedImages:
    """Some images: ids (n,), label indexes (n,) int64, pixels (n, side, side, 3) uint8."""

    image_ids: np.ndarray
    label_indexes: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.label_indexes)

    def __getitem__(self, rows: slice | np.ndarray) -> "DecodedImages":
        return DecodedImages(self.image_ids[rows], self.label_indexes[rows], self.pixels[rows])

    @classmethod
    def joined(cls, parts: Iterable["DecodedImages"]) -> "DecodedImages":
        """The images of all parts, in order."""
        columns = zip(*((part.image_ids, part.label_indexes, part.pixels) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


@dataclass(frozen=True)
class Shard:
    """The part of a cache that one rank reads."""

    converter: "SparkDatasetConverter"
    decoding: Decoding
    rank: int
    size: int
    threads: int  # for decoding

    @property
    def rows_of_all(self) -> int:
        """The number of images in all shards together."""
        return len(self.converter)

    def labels(self) -> pd.DataFrame:
        """`image_id` and `label_index` of every row of the shard, sorted: the order of reading varies."""
        parts = [pd.DataFrame({name: getattr(part, name) for name in ID_COLUMNS}) for part in self._read(ID_COLUMNS)]
        if not parts:
            raise ValueError("a shard of the cache holds no rows: expected at least one row for every process")
        return pd.concat(parts).sort_values(ID_COLUMNS, ignore_index=True)

    def images(self, *, skipped: frozenset[str] = frozenset()) -> Iterator[DecodedImages]:
        """Every image once, a row group at a time, except skipped ids, which are not decoded."""
        for part in self._read([*ID_COLUMNS, "content"], lambda rows: to_decoded_rows(rows, self.decoding, skipped)):
            yield from to_images(part, self.decoding.side_pixels)

    def epoch(self, number: int, seed: int) -> Iterator[DecodedImages]:
        """Augmented images for one epoch, shuffled; repeats without end."""
        decoding = replace(self.decoding, augmentation=Augmentation(seed, number))
        shuffled = np.random.default_rng((seed, number, self.rank))
        while True:
            parts = self._read(
                [*ID_COLUMNS, "content"], lambda rows: to_decoded_rows(rows, decoding, frozenset()), seed=seed + number
            )
            yield from shuffle((images for part in parts for images in to_images(part, decoding.side_pixels)), shuffled)

    def _read(
        self,
        columns: list[str],
        transform: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
        seed: int | None = None,
    ) -> Iterator:
        from petastorm import TransformSpec, make_batch_reader

        removed = ["content"]
        with make_batch_reader(
            self.converter.file_urls,
            schema_fields=columns,
            transform_spec=TransformSpec(transform, edit_fields=DECODED_FIELDS, removed_fields=removed)
            if transform
            else None,
            workers_count=self.threads,
            results_queue_size=QUEUED_ROW_GROUPS,
            num_epochs=1,
            shuffle_row_groups=seed is not None,
            seed=seed,
            cur_shard=self.rank,
            shard_count=self.size,
        ) as reader:
            yield from reader


def to_images(part: object, side_pixels: int) -> Iterator[DecodedImages]:
    """The rows that Petastorm read, without skipped ones; nothing if all were skipped."""
    image_ids, label_indexes, pixels = (np.asarray(getattr(part, name)) for name in (*ID_COLUMNS, "pixels"))
    decoded = np.array([len(of) > 0 for of in pixels], dtype=bool)
    if decoded.any():
        values = np.frombuffer(b"".join(pixels[decoded]), np.uint8).reshape(-1, side_pixels, side_pixels, 3)
        yield DecodedImages(image_ids[decoded], label_indexes[decoded], values)


def rebatched(parts: Iterable[DecodedImages], batch_size: int = READ_BATCH_SIZE) -> Iterator[DecodedImages]:
    """The images in batches of equal length, except that the last one may be shorter."""
    buffer: list[DecodedImages] = []
    for part in parts:
        buffer.append(part)
        if sum(map(len, buffer)) < batch_size:
            continue
        images = DecodedImages.joined(buffer)
        whole = len(images) - len(images) % batch_size
        yield from (images[start : start + batch_size] for start in range(0, whole, batch_size))
        buffer = [images[whole:]] if whole < len(images) else []
    if buffer:
        yield DecodedImages.joined(buffer)


def shuffle(parts: Iterable[DecodedImages], rng: np.random.Generator) -> Iterator[DecodedImages]:
    """The images shuffled within a buffer of SHUFFLE_BUFFER_ROWS to twice as many."""
    buffer: list[DecodedImages] = []
    for part in parts:
        buffer.append(part)
        if sum(map(len, buffer)) >= 2 * SHUFFLE_BUFFER_ROWS:
            images = DecodedImages.joined(buffer)
            images = images[rng.permutation(len(images))]
            yield images[SHUFFLE_BUFFER_ROWS:]
            buffer = [images[:SHUFFLE_BUFFER_ROWS]]
    if buffer:
        images = DecodedImages.joined(buffer)
        yield images[rng.permutation(len(images))]
