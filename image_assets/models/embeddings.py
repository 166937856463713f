"""What the frozen part of a network makes of a shard's images, computed once and kept on disk for all epochs."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from image_assets.models.epochs import EVALUATION_BATCH_SIZE, Batch, Collective, greatest
from image_assets.models.training_images import READ_BATCH_SIZE, Shard, rebatched
from resources.progress import ProgressLine

ROW_GROUP_ROWS = 1024  # of 5 KB each


@dataclass(frozen=True)
class EmbeddingStore:
    """Embeddings (n,) float32 by image, in Parquet files that are only ever added: a folder for each backbone."""

    folder: str

    def image_ids(self) -> frozenset[str]:
        """The images whose embeddings are known; the folder counts as used from now on."""
        if Path(self.folder).is_dir():
            Path(self.folder).touch()
        return frozenset(
            image_id
            for file in self._files()
            for image_id in pq.read_table(file, columns=["image_id"], use_threads=False)["image_id"].to_pylist()
        )

    def embeddings(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Images and their embeddings (n, features), in parts that fit in memory. An image may come more than once."""
        for file in self._files():
            for rows in pq.ParquetFile(file).iter_batches(ROW_GROUP_ROWS, use_threads=False):
                content = b"".join(rows["embedding"].to_pylist())
                yield rows["image_id"].to_pylist(), np.frombuffer(content, np.float32).reshape(rows.num_rows, -1)

    def add(self, image_ids: list[str], embeddings: np.ndarray) -> None:
        """Keep the embeddings (n, features) of more images: all of them, or none when this is cut off."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = pa.table({"image_id": image_ids, "embedding": [row.astype(np.float32).tobytes() for row in embeddings]})
        name = uuid4().hex
        unfinished = folder / f".{name}"
        pq.write_table(rows, unfinished, row_group_size=ROW_GROUP_ROWS, compression="none", use_dictionary=False)
        unfinished.replace(folder / f"{name}.parquet")

    def _files(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.parquet"))


Activations = Callable[[np.ndarray], np.ndarray]
STORED_AT_ONCE = 64 * READ_BATCH_SIZE  # embeddings that a killed training loses at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standardisation:
    """Each feature minus its mean, over its deviation: both (features,) float64."""

    mean: np.ndarray
    deviation: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """The features (n, features) standardised, float32."""
        return ((features - self.mean) / self.deviation).astype(np.float32)


@dataclass(frozen=True)
class PrecomputedInputs:
    """A shard's images as inputs (n, ...) of a network's trainable part, in the order of their ids."""

    inputs: np.ndarray
    label_indexes: np.ndarray
    steps: int  # of an epoch, equal on all ranks
    batch_size: int
    seed: tuple[int, int]  # of the training, and of the rank
    standardisation: Standardisation | None = None

    def __len__(self) -> int:
        return len(self.label_indexes)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The images in shuffled order; a shard with too few rows goes round again."""
        order = np.random.default_rng((*self.seed, epoch)).permutation(len(self))
        for rows in np.resize(order, (self.steps, self.batch_size)):
            yield self._batch(rows)

    def __iter__(self) -> Iterator[Batch]:
        """Every image once, in batches to be judged."""
        for start in range(0, len(self), EVALUATION_BATCH_SIZE):
            yield self._batch(np.arange(start, min(start + EVALUATION_BATCH_SIZE, len(self))))

    def standardised(self, by: Standardisation) -> "PrecomputedInputs":
        """The same images, standardised whenever they are handed out."""
        return replace(self, standardisation=by)

    def _batch(self, rows: np.ndarray) -> Batch:
        inputs = self.inputs[rows]
        return Batch(self.standardisation.of(inputs) if self.standardisation else inputs, self.label_indexes[rows])


def precompute_inputs(
    shard: Shard,
    activations: Activations,
    collective: Collective,
    *,
    batch_size: int,
    seed: int,
    store: EmbeddingStore | None = None,
) -> PrecomputedInputs:
    """The shard's images through the frozen part of a network; those in the store are not computed again."""
    rows = shard.labels()
    rows_of_image = {
        str(image_id): rows_of_image for image_id, rows_of_image in rows.groupby("image_id", sort=False).indices.items()
    }
    stored = store.image_ids() & rows_of_image.keys() if store else frozenset()
    buffer = RowBuffer(len(rows), rows_of_image)
    if store and stored:
        for image_ids, embeddings in store.embeddings():
            buffer.put(image_ids, embeddings)
    if len(stored) < len(rows_of_image):
        doing, lacking = "embedded" if store else "computed", len(rows_of_image) - len(stored)
        log = logger.info if collective.rank == 0 else logger.debug
        with ProgressLine(doing, lacking, "images of rank 0", log) as progress:
            for image_ids, computed in compute_activations(shard, activations, stored, progress):
                buffer.put(image_ids, computed)
                if store:
                    store.add(image_ids, computed)
    steps = greatest(collective, math.ceil(len(rows) / batch_size))
    label_indexes = rows["label_index"].to_numpy(np.int64)
    return PrecomputedInputs(buffer.whole(), label_indexes, steps, batch_size, (seed, collective.rank))


def compute_activations(
    shard: Shard, activations: Activations, stored: frozenset[str], progress: ProgressLine
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and activations of the images that are not known, some thousand at a time.

    Every batch has the same length, also the last: what becomes of an image must not depend on who is beside it.
    """
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for images in rebatched(shard.images(skipped=stored)):
        pixels = np.resize(images.pixels, (READ_BATCH_SIZE, *images.pixels.shape[1:]))
        ids += images.image_ids.tolist()
        parts.append(activations(pixels)[: len(images)])
        progress.update(len(images))
        if len(ids) >= STORED_AT_ONCE:
            yield ids, np.concatenate(parts)
            ids, parts = [], []
    if ids:
        yield ids, np.concatenate(parts)


class RowBuffer:
    """Rows of equal shape that come in any order, in a file without a name: it is gone with the process."""

    def __init__(self, count: int, rows_of_image: dict[str, np.ndarray]) -> None:
        self._count = count
        self._rows_of_image = rows_of_image
        self._rows: np.ndarray | None = None
        self._missing = set(rows_of_image)

    def put(self, image_ids: list[str], values: np.ndarray) -> None:
        """Put each image's values wherever the image belongs; others are left out."""
        if self._rows is None:
            with tempfile.TemporaryFile() as file:
                self._rows = np.memmap(file, values.dtype, "w+", shape=(self._count, *values.shape[1:]))
        for image_id, value in zip(image_ids, values, strict=True):
            if image_id in self._missing:
                self._rows[self._rows_of_image[image_id]] = value
                self._missing.discard(image_id)

    def whole(self) -> np.ndarray:
        """All rows; an error when one is missing."""
        if self._rows is None or self._missing:
            raise ValueError(f"{len(self._missing)} images of the cache were not read: write the cache again")
        return self._rows


def standardisation(images: PrecomputedInputs, collective: Collective) -> Standardisation:
    """Mean and deviation of each feature, over the images of all ranks."""
    count = collective.sum(np.array([len(images)]))
    mean = collective.sum(np.sum([batch.inputs.sum(axis=0, dtype=np.float64) for batch in images], axis=0)) / count
    squares = np.sum([((batch.inputs - mean) ** 2).sum(axis=0) for batch in images], axis=0)
    return Standardisation(mean, usable_deviation(collective.sum(squares) / count, mean))


def usable_deviation(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The standard deviation; 1 for a feature that does not vary, as many of an untrained backbone."""
    deviation = np.sqrt(variance)
    return np.where(deviation > 1e-6 * np.abs(mean) + 1e-30, deviation, 1.0)


@dataclass(frozen=True)
class AugmentedImages:
    """Images decoded anew for each epoch, and what the frozen part of a network makes of them."""

    shard: Shard
    activations: Activations
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Of an epoch, equal on all ranks."""
        return math.ceil(self.shard.rows_of_all / self.shard.size / self.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's images; a shard with too few rows goes round again."""
        images = rebatched(self.shard.epoch(epoch, self.seed), self.batch_size)
        for batch in islice(images, self.steps):
            yield Batch(self.activations(batch.pixels), batch.label_indexes)
