"""The most similar images: by the embeddings that trainings store, and by perceptual hash."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_assets.models.embeddings import EmbeddingStore
from image_assets.predictions.image_filters import SPLITS, Row
from image_assets.predictions.image_index import Index

NEIGHBOURS = 12
CHUNK_ROWS = 8192  # converted from float16 to float32 at a time, which limits the memory that a search needs

# The hash of an image or of its mirror image, whichever is closer.
NEAREST_BY_HASH = """
SELECT least(bit_count(xor(perceptual_hash, $hash)), bit_count(xor(coalesce(mirrored_hash, perceptual_hash), $hash)))
    AS bits, * FROM images
WHERE state = 'current' AND n <> $n AND perceptual_hash IS NOT NULL ORDER BY bits, n LIMIT $neighbours
"""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of many images, made by the backbone of one framework."""

    framework: str
    image_ids: list[str]
    row_numbers: dict[str, int]  # by image_id
    vectors: np.ndarray  # (images, features) float16, of length 1, memory-mapped from an unnamed file

    def nearest(self, image_id: str, count: int) -> list[tuple[str, float]]:
        """The images with the greatest cosine similarity, most similar first; empty if the image has no embedding."""
        number = self.row_numbers.get(image_id)
        if number is None:
            return []
        vector = self.vectors[number].astype(np.float32)
        starts = range(0, len(self.vectors), CHUNK_ROWS)
        cosines = np.concatenate(
            [self.vectors[start : start + CHUNK_ROWS].astype(np.float32) @ vector for start in starts]
        )
        cosines[number] = -np.inf  # the image itself
        nearest = np.argsort(-cosines)[: min(count, len(cosines) - 1)]
        return [(self.image_ids[other], float(cosines[other])) for other in nearest]


class LiveEmbeddings:
    """The embeddings in a caches folder, which trainings store for the images that they train on."""

    def __init__(self, caches: Path) -> None:
        self._caches = caches
        self._lock = threading.Lock()
        self._files: list[tuple[str, int]] = []
        self._embeddings: Embeddings | None = None

    def current(self) -> Embeddings | None:
        """The embeddings of the backbone that was used last; None if there are none yet."""
        folders = [folder for folder in self._caches.glob("[!.]*-*") if folder.is_dir()]
        # Each folder is named after a framework or, if it is the cache of a split, after the split.
        stores = [folder for folder in folders if folder.name.partition("-")[0] not in SPLITS]
        if not stores:
            return None
        newest = max(stores, key=lambda folder: (folder.stat().st_mtime, folder.name))
        files = sorted((str(file), file.stat().st_size) for file in newest.glob("*.parquet"))
        with self._lock:
            if files != self._files:
                self._embeddings, self._files = read_embeddings(newest), files
            return self._embeddings


def read_embeddings(folder: Path) -> Embeddings | None:
    """All embeddings in a folder, one per image; None if there are none."""
    row_numbers: dict[str, int] = {}
    image_ids: list[str] = []
    features = 0
    with tempfile.TemporaryFile() as file:
        for batch_ids, batch in EmbeddingStore(str(folder)).embeddings():
            new = []
            for row, image_id in enumerate(batch_ids):
                if image_id not in row_numbers:
                    row_numbers[image_id] = len(image_ids)
                    image_ids.append(image_id)
                    new.append(row)
            lengths = np.linalg.norm(batch, axis=1, keepdims=True)
            # The floor keeps an all-zero embedding from becoming NaN.
            file.write((batch / np.maximum(lengths, 1e-12)).astype(np.float16)[new].tobytes())
            features = batch.shape[1]
        file.flush()
        if not image_ids:
            return None
        # The mapping keeps the file's content after the file is closed.
        vectors = np.memmap(file, np.float16, "r", shape=(len(image_ids), features))
    return Embeddings(folder.name.partition("-")[0], image_ids, row_numbers, vectors)


def nearest_by_hash(index: Index, image: Row) -> list[Row]:
    """Current images whose perceptual hash, mirrored or not, differs in the fewest `bits` of 64; closest first."""
    if image["perceptual_hash"] is None:
        return []
    values = {"hash": image["perceptual_hash"], "n": image["n"], "neighbours": NEIGHBOURS}
    return index.rows(NEAREST_BY_HASH, values)
