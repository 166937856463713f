"""A cache's images as a rank reads them: by Petastorm, decoded on its threads, in batches of equal length."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from image_assets.images.cached_pixels import to_cached_pixels
from image_assets.images.pixels import DEFAULT, Crop, Reading
from resources.delta.row_groups import Color, Content

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

# What a decoded row group is to Petastorm: name, type, shape, and whether it may be null.
DECODED_FIELDS = [("number", np.int64, (), False)]

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

    def pixels(self, image_id: str, cached: bytes) -> np.ndarray:
        """The pixels (side, side, 3) uint8 of one row."""
        crop = self.augmentation.crop(image_id) if self.augmentation else None
        return to_cached_pixels(cached, self.side_pixels, self.content, self.color, crop, self.reading)


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

    def labels(self) -> pd.DataFrame:
        """Their `image_id` and `label_index`."""
        return pd.DataFrame(dict(zip(ID_COLUMNS, (self.image_ids, self.label_indexes), strict=True)))

    @classmethod
    def joined(cls, parts: Iterable["DecodedImages"]) -> "DecodedImages":
        """The images of all parts, in order."""
        columns = zip(*((part.image_ids, part.label_indexes, part.pixels) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


def to_decoded_images(rows: pd.DataFrame, decoding: Decoding, skipped: frozenset[str] = frozenset()) -> DecodedImages:
    """A row group's images, except skipped ids. Raises for an image that cannot be decoded: caches hold none."""
    rows = rows.loc[~rows["image_id"].isin([*skipped])]
    pixels = np.empty((len(rows), decoding.side_pixels, decoding.side_pixels, 3), np.uint8)
    for place, image_id, content in zip(pixels, rows["image_id"], rows["content"], strict=True):
        place[:] = decoding.pixels(image_id, content)
    return DecodedImages(rows["image_id"].to_numpy(str), rows["label_index"].to_numpy(np.int64), pixels)


def sorted_labels(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The `image_id` and `label_index` of all parts, sorted: the order of reading varies."""
    parts = list(parts)
    if not parts:
        raise ValueError("a shard of the cache holds no rows: expected at least one row for every process")
    return pd.concat(parts).sort_values(ID_COLUMNS, ignore_index=True)


@dataclass(frozen=True)
class Shard:
    """The part of one or more caches that one rank reads."""

    caches: "tuple[SparkDatasetConverter, ...]"
    decoding: Decoding
    rank: int
    size: int
    threads: int  # for decoding

    @property
    def rows_of_all(self) -> int:
        """The number of images in all shards together."""
        return sum(map(len, self.caches))

    def labels(self) -> pd.DataFrame:
        """`image_id` and `label_index` of every row of the shard, sorted."""
        return sorted_labels(
            pd.DataFrame({name: getattr(part, name) for name in ID_COLUMNS}) for part in self._read(ID_COLUMNS)
        )

    def images(self, *, skipped: frozenset[str] = frozenset()) -> Iterator[DecodedImages]:
        """Every image once, a row group at a time, except skipped ids, which are not decoded."""
        return self._decoded(self.decoding, skipped)

    def epoch(self, number: int, seed: int) -> Iterator[DecodedImages]:
        """Augmented images for one epoch, shuffled; repeats without end."""
        decoding = replace(self.decoding, augmentation=Augmentation(seed, number))
        shuffled = np.random.default_rng((seed, number, self.rank))
        while True:
            yield from shuffle(self._decoded(decoding, seed=seed + number), shuffled)

    def _decoded(
        self, decoding: Decoding, skipped: frozenset[str] = frozenset(), seed: int | None = None
    ) -> Iterator[DecodedImages]:
        """Decoded row groups. Petastorm's queue holds their numbers only: it would copy pixels several times."""
        decoded: dict[int, DecodedImages] = {}
        numbers = count()

        def decode(rows: pd.DataFrame) -> pd.DataFrame:
            number = next(numbers)
            decoded[number] = to_decoded_images(rows, decoding, skipped)
            return pd.DataFrame({"number": [number]})

        for part in self._read([*ID_COLUMNS, "content"], decode, seed):
            images = decoded.pop(int(part.number[0]))
            if len(images):
                yield images

    def _read(
        self,
        columns: list[str],
        transform: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
        seed: int | None = None,
    ) -> Iterator:
        from petastorm import TransformSpec, make_batch_reader

        with make_batch_reader(
            [url for cache in self.caches for url in cache.file_urls],
            schema_fields=columns,
            transform_spec=TransformSpec(transform, edit_fields=DECODED_FIELDS, removed_fields=columns)
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
