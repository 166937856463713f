"""A cache's rows as a rank reads them: through Petastorm, decoded on its threads, in batches of equal length."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from image_assets.models.decoded_rows import DECODED, SIDE_PIXELS, Augmentation, Decoding, to_decoded_rows

if TYPE_CHECKING:
    from petastorm.spark import SparkDatasetConverter

READ_BATCH_SIZE = 32
THIN = ["image_id", "label_index"]
WAITING_ROW_GROUPS = 4  # decoded ones, each of some megabytes
SHUFFLED_ROWS = 256  # among which the next ones of an epoch are drawn; as pixels, 38 MB


@dataclass(frozen=True)
class DecodedImages:
    """Some images: ids (n,), label indexes (n,) int64, pixels (n, 224, 224, 3) uint8."""

    image_ids: np.ndarray
    label_indexes: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.label_indexes)

    def __getitem__(self, rows: slice | np.ndarray) -> "DecodedImages":
        return DecodedImages(self.image_ids[rows], self.label_indexes[rows], self.pixels[rows])

    @classmethod
    def joined(cls, parts: Iterable["DecodedImages"]) -> "DecodedImages":
        """The images of all parts."""
        columns = zip(*((part.image_ids, part.label_indexes, part.pixels) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


@dataclass(frozen=True)
class Shard:
    """The part of a cache that one rank reads."""

    converter: "SparkDatasetConverter"
    decoding: Decoding
    rank: int
    size: int
    threads: int  # that decode

    @property
    def rows_of_all(self) -> int:
        """How many images all shards hold together."""
        return len(self.converter)

    def labels(self) -> pd.DataFrame:
        """`image_id` and `label_index` of every row of the shard, in an order that does not depend on their reading."""
        parts = [pd.DataFrame({name: getattr(part, name) for name in THIN}) for part in self._read(THIN)]
        if not parts:
            raise ValueError("a shard of the cache holds no rows: expected at least one row for every process")
        return pd.concat(parts).sort_values(THIN, ignore_index=True)

    def images(self, *, skipped: frozenset[str] = frozenset()) -> Iterator[DecodedImages]:
        """The images once, a row group at a time, but for those of some ids, which are not decoded."""
        for part in self._read([*THIN, "content"], lambda rows: to_decoded_rows(rows, self.decoding, skipped)):
            yield from to_images(part)

    def epoch(self, number: int, seed: int) -> Iterator[DecodedImages]:
        """Augmented images for one epoch, shuffled over all ranks, as many times as they are asked for."""
        decoding = replace(self.decoding, augmentation=Augmentation(seed, number))
        shuffled = np.random.default_rng((seed, number, self.rank))
        while True:
            parts = self._read(
                [*THIN, "content"], lambda rows: to_decoded_rows(rows, decoding, frozenset()), seed=seed + number
            )
            yield from shuffle((images for part in parts for images in to_images(part)), shuffled)

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
            transform_spec=TransformSpec(transform, edit_fields=DECODED, removed_fields=removed) if transform else None,
            workers_count=self.threads,
            results_queue_size=WAITING_ROW_GROUPS,
            num_epochs=1,
            shuffle_row_groups=seed is not None,
            seed=seed,
            cur_shard=self.rank,
            shard_count=self.size,
        ) as reader:
            yield from reader


def to_images(part: object) -> Iterator[DecodedImages]:
    """What Petastorm read, without the rows that were skipped; nothing when all were."""
    image_ids, label_indexes, pixels = (np.asarray(getattr(part, name)) for name in (*THIN, "pixels"))
    decoded = np.array([len(of) > 0 for of in pixels], dtype=bool)
    if decoded.any():
        values = np.frombuffer(b"".join(pixels[decoded]), np.uint8).reshape(-1, SIDE_PIXELS, SIDE_PIXELS, 3)
        yield DecodedImages(image_ids[decoded], label_indexes[decoded], values)


def in_batches(parts: Iterable[DecodedImages], batch_size: int = READ_BATCH_SIZE) -> Iterator[DecodedImages]:
    """The images in batches of equal length; the last one holds what is left."""
    waiting: list[DecodedImages] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) < batch_size:
            continue
        images = DecodedImages.joined(waiting)
        whole = len(images) - len(images) % batch_size
        yield from (images[start : start + batch_size] for start in range(0, whole, batch_size))
        waiting = [images[whole:]] if whole < len(images) else []
    if waiting:
        yield DecodedImages.joined(waiting)


def shuffle(parts: Iterable[DecodedImages], rng: np.random.Generator) -> Iterator[DecodedImages]:
    """The images in another order, each drawn from some hundred."""
    waiting: list[DecodedImages] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= 2 * SHUFFLED_ROWS:
            images = DecodedImages.joined(waiting)
            images = images[rng.permutation(len(images))]
            yield images[SHUFFLED_ROWS:]
            waiting = [images[:SHUFFLED_ROWS]]
    if waiting:
        images = DecodedImages.joined(waiting)
        yield images[rng.permutation(len(images))]
