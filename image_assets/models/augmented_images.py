"""A shard's images, cropped and mirrored in another way in each epoch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from image_assets.models.cache_batches import Shard, in_batches
from image_assets.models.epochs import Batch
from image_assets.models.kept_images import Activations


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
        images = in_batches(self.shard.epoch(epoch, self.seed), self.batch_size)
        for batch in islice(images, self.steps):
            yield Batch(self.activations(batch.pixels), batch.label_indexes)
