"""The most similar images: by embedding, and by perceptual hash."""

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from image_assets.models.backbones import BACKBONES
from image_assets.models.embeddings import StoredEmbeddings
from image_assets.models.stored_embeddings import embedding_files, newest_backbone
from image_assets.predictions.image_filters import Row
from image_assets.predictions.image_index import Index
from image_assets.schemas import IMAGE_EMBEDDINGS
from resources.delta.delta_tables import DeltaTables

NEIGHBORS = 12
CHUNK_ROWS = 512  # converted to float32 at a time: they fit into a core's cache
LENGTH = 32767  # of a vector; NumPy converts int16 several times as fast as float16, which is no more precise here

# The hash of an image or of its mirror image, whichever is closer.
NEAREST_BY_HASH = """
SELECT least(bit_count(xor(perceptual_hash, $hash)), bit_count(xor(coalesce(mirrored_hash, perceptual_hash), $hash)))
    AS bits, * FROM images
WHERE state = 'current' AND n <> $n AND perceptual_hash IS NOT NULL ORDER BY bits, n LIMIT $neighbors
"""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of many images by one backbone."""

    backbone: str  # its name and framework
    image_ids: list[str]
    row_numbers: dict[str, int]  # by image_id
    vectors: np.ndarray  # (images, compared features) int16, of length LENGTH, memory-mapped from an unnamed file

    def nearest(self, image_id: str, count: int) -> list[tuple[str, float]]:
        """The images with the greatest cosine similarity, most similar first; empty if the image has no embedding."""
        number = self.row_numbers.get(image_id)
        if number is None:
            return []
        vector = self.vectors[number].astype(np.float32) / LENGTH**2

        def cosines_from(start: int) -> np.ndarray:
            return self.vectors[start : start + CHUNK_ROWS].astype(np.float32) @ vector

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy computes without the interpreter's lock
            cosines = np.concatenate([*threads.map(cosines_from, range(0, len(self.vectors), CHUNK_ROWS))])
        cosines[number] = -np.inf  # the image itself
        nearest = np.argsort(-cosines, kind="stable")[: min(count, len(cosines) - 1)]
        return [(self.image_ids[other], min(1.0, float(cosines[other]))) for other in nearest]


class LiveEmbeddings:
    """The embeddings of all images by one backbone, kept until `image_embeddings` changes."""

    def __init__(self, delta_tables: DeltaTables) -> None:
        self._delta_tables = delta_tables
        self._lock = threading.Lock()
        self._commit: tuple[str, int, str] | None = None
        self._embeddings: Embeddings | None = None

    def current(self) -> Embeddings | None:
        """The embeddings of the backbone that was used last; None if there are none yet."""
        with self._lock:
            commit = self._delta_tables.newest_commit_id(IMAGE_EMBEDDINGS)
            if commit != self._commit:
                backbone = newest_backbone(self._delta_tables)
                self._embeddings = read_embeddings(self._delta_tables, backbone) if backbone else None
                self._commit = commit
            return self._embeddings


def read_embeddings(delta_tables: DeltaTables, backbone: str) -> Embeddings | None:
    """All embeddings of a backbone, one per image; None if there are none."""
    name, framework, _ = backbone.rsplit("-", 2)
    first = BACKBONES[name].compared_from if name in BACKBONES else 0
    image_ids: list[str] = []
    features = 0
    with tempfile.TemporaryFile() as file:
        for batch_ids, batch in StoredEmbeddings(embedding_files(delta_tables), backbone).read():
            compared = batch[:, first:]
            lengths = np.linalg.norm(compared.astype(np.float32), axis=1, keepdims=True)
            # The floor keeps an all-zero embedding from becoming NaN.
            file.write((compared / np.maximum(lengths, 1e-12) * LENGTH).round().astype(np.int16).tobytes())
            image_ids += batch_ids
            features = compared.shape[1]
        file.flush()
        if not image_ids:
            return None
        # The mapping keeps the file's content after the file is closed.
        vectors = np.memmap(file, np.int16, "r", shape=(len(image_ids), features))
    row_numbers = {image_id: number for number, image_id in enumerate(image_ids)}
    return Embeddings(f"{name} ({framework})", image_ids, row_numbers, vectors)


def nearest_by_hash(index: Index, image: Row) -> list[Row]:
    """Current images whose perceptual hash, mirrored or not, differs in the fewest `bits` of 64; closest first."""
    if image["perceptual_hash"] is None:
        return []
    values = {"hash": image["perceptual_hash"], "n": image["n"], "neighbors": NEIGHBORS}
    return index.rows(NEAREST_BY_HASH, values)
