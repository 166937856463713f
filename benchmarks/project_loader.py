"""Batches from this project's own caches, and their two limits: Petastorm without decoding, decoding without Petastorm.

The kernels `original`, `jpeg` and `pixels` are cache contents; `undecoded` and `decoding` measure the limits.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import islice, repeat
from pathlib import Path
from typing import cast, get_args

import numpy as np
from pyspark.sql import functions as F

from benchmarks.feeding import BATCH_IMAGES, SIDE_PIXELS, WORKERS, Batch, feed
from benchmarks.task import Task, read_task, timed
from image_assets.images.cached_pixels import to_cached_rows
from image_assets.images.pixels import to_pixels
from image_assets.models.embeddings import PrecomputedInputs, precompute_inputs
from image_assets.models.epochs import Collective
from image_assets.models.torch_collectives import HorovodForTorch
from image_assets.models.training_images import Decoding, Shard
from resources.delta.arrow_rows import map_partitions
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.delta.row_groups import Content

NAME = "training-benchmark"


def prepare(task: Task) -> None:
    """Write a cache of a home's images, with the photograph's number as the label."""
    from benchmarks.ours import start_spark, use_home

    home = Path(task.source)
    use_home(home, Path((home / "landing_folder").read_text().strip()))
    start_spark()
    from definitions import resources
    from image_assets.schemas import FEATURED_IMAGES

    number = F.regexp_extract("path", r"(\d+)\.jpg$", 1).cast("long").alias("label_index")
    images = resources["delta_tables"].dataframe(FEATURED_IMAGES).select("image_id", "content", number)
    content: Content = cast("Content", task.kernel) if task.kernel in get_args(Content) else "original"
    with timed():
        cached = partial(to_cached_rows, side_pixels=SIDE_PIXELS, content=content, color="rgb")
        held = map_partitions(images, cached, images.schema)
        PetastormCaches(root=task.target, content=content).write(held, NAME, ranks=1)


class ProjectEpochs:
    """A cache's images as in full fine-tuning: decoded in the first epoch, stored as pixels for the others."""

    def __init__(self, cache: Cache, collective: Collective) -> None:
        self._shard = Shard((cache.converter(),), Decoding(SIDE_PIXELS, cache.content, cache.color), 0, 1, WORKERS)
        self._collective = collective
        self._kept: PrecomputedInputs | None = None
        self._rng = np.random.default_rng(0)

    def epoch(self) -> Iterator[Batch]:
        """Every image once, in shuffled batches; the last batch may be smaller."""
        if self._kept is None:
            self._kept = precompute_inputs(self._shard, np.array, self._collective, batch_size=BATCH_IMAGES, seed=0)
        order = self._rng.permutation(len(self._kept))
        for start in range(0, len(order), BATCH_IMAGES):
            rows = order[start : start + BATCH_IMAGES]
            yield self._kept.inputs(rows), self._kept.label_indexes[rows]


def petastorm_rows(cache: Cache) -> Iterator:
    """What Petastorm's reader gives, a row group at a time."""
    from petastorm import make_batch_reader

    with make_batch_reader(
        list(cache.files),
        schema_fields=["content", "label_index"],
        num_epochs=1,
        workers_count=WORKERS,
        shuffle_row_groups=False,
    ) as reader:
        yield from reader


def undecoded_epoch(cache: Cache) -> Iterator[Batch]:
    """Petastorm alone: the cache's bytes, not decoded."""
    for rows in petastorm_rows(cache):
        yield list(rows.content), rows.label_index


def decoding_epoch(undecoded: Sequence[Batch]) -> Iterator[Batch]:
    """Decoding alone: bytes already in memory, with as many threads as Petastorm uses."""
    contents = [content for batch, _ in undecoded for content in batch]
    numbers = np.concatenate([of for _, of in undecoded])
    with ThreadPoolExecutor(WORKERS) as pool:
        decoded = pool.map(to_pixels, contents, repeat(SIDE_PIXELS))
        for start in range(0, len(contents), BATCH_IMAGES):
            yield np.stack([*islice(decoded, BATCH_IMAGES)]), numbers[start : start + BATCH_IMAGES]


def main() -> None:
    """Write the cache, or feed from it."""
    task = read_task()
    if task.benchmark == "prepare":
        prepare(task)
        return
    for name in ("petastorm", "horovod.torch"):
        import_module(name)  # so that startup includes it
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    cache = PetastormCaches(root=task.source).find(NAME)
    assert cache, f"no cache {NAME} in {task.source}"
    if task.kernel in get_args(Content):
        feed(ProjectEpochs(cache, HorovodForTorch()).epoch, task.target)
    elif task.kernel == "undecoded":
        feed(partial(undecoded_epoch, cache), task.target)
    else:
        feed(partial(decoding_epoch, [*undecoded_epoch(cache)]), task.target)


if __name__ == "__main__":
    main()
