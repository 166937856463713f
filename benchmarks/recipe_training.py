"""What both frameworks share in the common recipe's training: decoding with Pillow, timing of epochs."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.task import answer
from image_assets.models.backbones import MOBILENET_V2
from resources.delta.petastorm_caches import Cache, PetastormCaches

if TYPE_CHECKING:
    from petastorm import TransformSpec

SIDE_PIXELS = 224
BATCH_SIZE = 32
EPOCHS = 5
LEARNING_RATE, MOMENTUM = 0.001, 0.9
BACKBONE = "IMAGE_ASSETS_BACKBONE"


def cache_in(home: str, split: str) -> Cache:
    """The cache of a split, in a home with exactly one cache per split."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    caches = Path(home, "caches")
    found = [PetastormCaches(root=str(caches)).find(folder.name) for folder in caches.glob(f"{split}-*")]
    (cache,) = [cache for cache in found if cache]
    return cache


def labels_in(cache: Cache) -> int:
    """The number of labels in a cache."""
    files = [file.removeprefix("file://") for file in cache.files]
    return 1 + max(int(pq.read_table(file, columns=["label_index"])["label_index"].to_numpy().max()) for file in files)


def weights_file(framework: str) -> Path | None:
    """The weight file in the folder IMAGE_ASSETS_BACKBONE, or None if the framework downloads its own."""
    folder = os.environ.get(BACKBONE, "")
    return (
        Path(folder) / MOBILENET_V2.implementations[framework].weight_files[0] if Path(folder).is_absolute() else None
    )


def transform(preprocessed: Callable[[Image.Image], np.ndarray], shape: Sequence[int]) -> "TransformSpec":
    """Petastorm's transformation of a row group: decode and resize with Pillow, then preprocess to float32."""
    from petastorm import TransformSpec

    def to_features(content: bytes) -> np.ndarray:
        return preprocessed(Image.open(BytesIO(content)).convert("RGB").resize((SIDE_PIXELS, SIDE_PIXELS)))

    def of_rows(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"features": rows["content"].map(to_features), "label_index": rows["label_index"]})

    fields = [("features", np.float32, tuple(shape), False)]
    return TransformSpec(of_rows, edit_fields=fields, selected_fields=["features", "label_index"])


class EpochClock:
    """Measures the seconds until the end of each epoch, including its validation."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.epochs: list[dict[str, float]] = []

    def tell(self, validation_accuracy: float) -> None:
        """Record the end of an epoch."""
        seconds = time.perf_counter() - self.started
        self.epochs.append({"seconds": seconds, "validation_accuracy": validation_accuracy})

    def answer(self) -> None:
        """Report to the harness; the work ends with the last epoch."""
        answer({"work_seconds": self.epochs[-1]["seconds"], "epochs": self.epochs})
