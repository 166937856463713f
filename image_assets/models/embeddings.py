"""Outputs of the frozen part of a network: read from `image_embeddings`, or computed once for all epochs."""

import logging
import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from image_assets.models.epochs import EVALUATION_BATCH_SIZE, Batch, Collective, greatest
from image_assets.models.training_images import (
    READ_BATCH_SIZE,
    Augmentation,
    DecodedImages,
    Shard,
    rebatched,
    sorted_labels,
)
from resources.delta.new_rows import NewRows
from resources.progress import ProgressLine

STORED_TYPE = np.dtype("<f2")  # of the values of an embedding in `image_embeddings`
LARGEST = float(np.finfo(STORED_TYPE).max)
Activations = Callable[[np.ndarray], np.ndarray]
logger = logging.getLogger(__name__)


def to_stored(embedding: np.ndarray) -> bytes:
    """An embedding (features,) as `image_embeddings` stores it; values that float16 cannot hold become its largest."""
    return np.clip(embedding, -LARGEST, LARGEST).astype(STORED_TYPE).tobytes()


@dataclass(frozen=True)
class StoredEmbeddings:
    """The embeddings of one backbone in `image_embeddings`, by image id.

    Attributes:
        files: The addresses of the table's files.
        backbone: The value of the table's column `backbone`.
    """

    files: tuple[str, ...]
    backbone: str

    def read(self, image_ids: Collection[str] | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Image ids and embeddings (n, features) float16, in parts that fit in memory; of all images or some.

        Each image comes once, however many files have its content. Images without an embedding are left out.
        """
        if image_ids is None:
            rows = NewRows(self.files, None, ("backbone",), wanted=frozenset([(self.backbone,)]))
        else:  # row groups without any of the images are not read
            wanted = frozenset((self.backbone, image_id) for image_id in image_ids)
            rows = NewRows(self.files, None, ("backbone", "image_id"), wanted=wanted)
        seen: set[str] = set()
        for part in rows.tables(["image_id", "embedding"], 0, 1):
            found = dict(zip(part["image_id"].to_pylist(), part["embedding"].to_pylist(), strict=True))
            new = {name: stored for name, stored in found.items() if stored is not None and name not in seen}
            seen.update(new)
            if new:
                yield [*new], np.frombuffer(b"".join(new.values()), STORED_TYPE).reshape(len(new), -1)


@dataclass(frozen=True)
class Standardization:
    """The mean and standard deviation of each feature, both (features,) float64."""

    mean: np.ndarray
    deviation: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """The standardized features (n, features) float32."""
        return ((features - self.mean) / self.deviation).astype(np.float32)


@dataclass(frozen=True)
class PrecomputedInputs:
    """A shard's images as inputs of the trainable part of a network, ordered by image id.

    Attributes:
        distinct: The inputs of all distinct images (m, ...), in any order.
        positions: The row of each image (n,) in `distinct`.
        label_indexes: The label of each image (n,).
        steps: Steps per epoch, equal on all ranks.
        batch_size: The number of images in a step.
        seed: That of the training, and the rank.
        standardization: What is done to each batch.
    """

    distinct: np.ndarray
    positions: np.ndarray
    label_indexes: np.ndarray
    steps: int
    batch_size: int
    seed: tuple[int, int]
    standardization: Standardization | None = None

    def __len__(self) -> int:
        return len(self.label_indexes)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The images in shuffled order, repeated if the shard has too few for the epoch's steps."""
        order = np.random.default_rng((*self.seed, epoch)).permutation(len(self))
        for rows in np.resize(order, (self.steps, self.batch_size)):
            yield self._batch(rows)

    def __iter__(self) -> Iterator[Batch]:
        """Every image once, in batches for evaluation."""
        for start in range(0, len(self), EVALUATION_BATCH_SIZE):
            yield self._batch(np.arange(start, min(start + EVALUATION_BATCH_SIZE, len(self))))

    def standardized(self, by: Standardization) -> "PrecomputedInputs":
        """The same images, standardized batch by batch."""
        return replace(self, standardization=by)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """The inputs of some images, as they were computed."""
        return self.distinct[self.positions[rows]]

    def _batch(self, rows: np.ndarray) -> Batch:
        inputs = self.inputs(rows)
        return Batch(self.standardization.of(inputs) if self.standardization else inputs, self.label_indexes[rows])


@dataclass(frozen=True)
class JoinedInputs:
    """The images of several splits, one after another."""

    splits: Sequence[PrecomputedInputs]

    @property
    def label_indexes(self) -> np.ndarray:
        """The label indexes of all images (n,)."""
        return np.concatenate([images.label_indexes for images in self.splits])

    @property
    def steps(self) -> int:
        """Steps per epoch, equal on all ranks."""
        return sum(images.steps for images in self.splits)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The images of all splits in shuffled order, repeated if they are too few for the epoch's steps."""
        first, label_indexes = self.splits[0], self.label_indexes
        ends = np.cumsum([len(images) for images in self.splits])
        order = np.random.default_rng((*first.seed, epoch)).permutation(len(label_indexes))
        for rows in np.sort(np.resize(order, (self.steps, first.batch_size))):
            parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
            starts = ends - [len(images) for images in self.splits]
            inputs = [
                images.inputs(part - start) for images, part, start in zip(self.splits, parts, starts, strict=True)
            ]
            yield Batch(np.concatenate(inputs), label_indexes[rows])

    def __iter__(self) -> Iterator[Batch]:
        """Every image once, in batches for evaluation."""
        return chain.from_iterable(self.splits)


def precompute_inputs(
    shard: Shard,
    activations: Activations,
    collective: Collective,
    *,
    batch_size: int,
    seed: int,
    stored: StoredEmbeddings | None = None,
) -> PrecomputedInputs:
    """The output of the frozen part of a network for a shard's images, computed only for images that lack it."""
    buffer, read = RowBuffer(), []
    rows, missing = None, math.ceil(shard.rows_of_all / shard.size)  # an estimate: the rows come with the images
    if stored and stored.files:
        rows = shard.labels()
        for image_ids, embeddings in stored.read(set(rows["image_id"])):
            buffer.put(image_ids, embeddings.astype(np.float32))
        missing = rows["image_id"].nunique() - len(buffer.positions)
    if missing:
        doing = "embedded" if stored else "computed"
        log = logger.info if collective.rank == 0 else logger.debug
        with ProgressLine(doing, missing, "images of rank 0", log) as progress:
            for images, computed in compute_activations(shard, activations, frozenset(buffer.positions), progress):
                buffer.put(images.image_ids.tolist(), computed)
                read.append(images.labels())
    if rows is None:
        rows = sorted_labels(read)
    steps = greatest(collective, math.ceil(len(rows) / batch_size))
    label_indexes = rows["label_index"].to_numpy(np.int64)
    positions = buffer.positions_of(rows["image_id"])
    return PrecomputedInputs(buffer.whole(), positions, label_indexes, steps, batch_size, (seed, collective.rank))


def compute_activations(
    shard: Shard, activations: Activations, skipped: frozenset[str], progress: ProgressLine
) -> Iterator[tuple[DecodedImages, np.ndarray]]:
    """Batches of the images, except of those that are skipped, and their activations."""
    for images in rebatched(shard.images(skipped=skipped)):
        # The last batch is padded to the full length: kernels chosen by batch size round differently, and an
        # embedding must not depend on the images beside it.
        pixels = images.pixels
        if len(images) < READ_BATCH_SIZE:
            pixels = np.resize(pixels, (READ_BATCH_SIZE, *pixels.shape[1:]))
        yield images, activations(pixels)[: len(images)]
        progress.update(len(images))


class RowBuffer:
    """Rows of equal shape, one for each image, in an unnamed temporary file that disappears with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the buffer
        self._row: np.ndarray | None = None  # one, for its shape and type
        self.positions: dict[str, int] = {}  # of the images' rows in the file

    def put(self, image_ids: list[str], values: np.ndarray) -> None:
        """Store the value of each image that has none yet."""
        for image_id, value in zip(image_ids, np.ascontiguousarray(values), strict=True):
            if image_id not in self.positions:
                # Written, not mapped: that takes half the time, and a full disk raises an error.
                self._file.write(value.data)
                self.positions[image_id] = len(self.positions)
                self._row = value

    def positions_of(self, image_ids: Iterable[str]) -> np.ndarray:
        """The positions of some images; a ValueError if any has no row."""
        image_ids = list(image_ids)
        if missing := len({*image_ids} - {*self.positions}):
            raise ValueError(f"{missing} images of the cache could not be read: materialize the cache again")
        return np.array([self.positions[image_id] for image_id in image_ids])

    def whole(self) -> np.ndarray:
        """All rows, of which there is at least one."""
        if self._row is None:
            raise ValueError("no image has a row")
        self._file.flush()
        return np.memmap(self._file, self._row.dtype, "r", shape=(len(self.positions), *self._row.shape))


def standardization(images: PrecomputedInputs, collective: Collective) -> Standardization:
    """Mean and standard deviation of each feature over the images of all ranks."""
    count = collective.sum(np.array([len(images)]))
    mean = collective.sum(np.sum([batch.inputs.sum(axis=0, dtype=np.float64) for batch in images], axis=0)) / count
    # Two passes, in float64: the mean of squares minus the squared mean would cancel for features far from 0.
    squares = np.sum([((batch.inputs - mean) ** 2).sum(axis=0) for batch in images], axis=0)
    return Standardization(mean, usable_deviation(collective.sum(squares) / count, mean))


def usable_deviation(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The standard deviation; 1 for constant features, which are common in untrained backbones."""
    deviation = np.sqrt(variance)
    # Relative to the mean: rounding alone makes a constant feature deviate by about 1e-7 of it in float32.
    return np.where(deviation > 1e-6 * np.abs(mean) + 1e-30, deviation, 1.0)


@dataclass(frozen=True)
class AugmentedImages:
    """Images that are augmented anew in each epoch, through the frozen part of a network."""

    shard: Shard
    activations: Activations
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps per epoch, equal on every rank."""
        return math.ceil(self.shard.rows_of_all / self.shard.size / self.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's images, repeated if the shard has too few for its steps."""
        images = rebatched(self.shard.epoch(epoch, self.seed), self.batch_size)
        for batch in islice(images, self.steps):
            yield Batch(self.activations(batch.pixels), batch.label_indexes)


@dataclass(frozen=True)
class AugmentedViews:
    """Augmented images through the frozen part of a network: some views of each, computed when first used, on disk."""

    count: int
    shard: Shard
    activations: Activations
    collective: Collective
    batch_size: int
    seed: int
    computed: dict[int, PrecomputedInputs] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps per epoch, equal on every rank."""
        return self.inputs(1).steps

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The images of the epoch's view in shuffled order, repeated if the shard has too few for the epoch's steps."""
        return self.inputs(epoch).batches(epoch)

    def inputs(self, epoch: int) -> PrecomputedInputs:
        """The images of the epoch's view."""
        number = (epoch - 1) % self.count
        if number not in self.computed:
            decoding = replace(self.shard.decoding, augmentation=Augmentation(self.seed, number))
            self.computed[number] = precompute_inputs(
                replace(self.shard, decoding=decoding),
                self.activations,
                self.collective,
                batch_size=self.batch_size,
                seed=self.seed,
            )
        return self.computed[number]


@dataclass(frozen=True)
class JoinedViews:
    """The augmented images of several splits; views that one of them has already are not computed again."""

    splits: Sequence[AugmentedViews]

    @property
    def steps(self) -> int:
        """Steps per epoch, equal on every rank."""
        return self._inputs(1).steps

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The images of the epoch's views in shuffled order, repeated if they are too few for the epoch's steps."""
        return self._inputs(epoch).batches(epoch)

    def _inputs(self, epoch: int) -> JoinedInputs:
        return JoinedInputs([views.inputs(epoch) for views in self.splits])
