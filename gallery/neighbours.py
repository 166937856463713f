"""Which images are most like one: by the embeddings that trainings keep, and by perceptual hashes."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gallery.index import Index
from gallery.queries import Row
from image_assets.models.embeddings import EmbeddingStore

FRAMEWORKS = ("tensorflow", "torch")  # how the folders of embeddings begin
SHOWN = 12
CHUNK_ROWS = 8192  # float16 is turned to float32 as many at a time

# The hash of an image or of its mirror image, whichever is nearer.
NEAR = """
SELECT least(bit_count(xor(perceptual_hash, $hash)), bit_count(xor(coalesce(mirrored_hash, perceptual_hash), $hash)))
    AS bits, * FROM images
WHERE state = 'current' AND n <> $n AND perceptual_hash IS NOT NULL ORDER BY bits, n LIMIT $shown
"""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of length one (n, features), float16, in a file without a name; `places` are the images' rows."""

    backbone: str
    places: dict[str, int]
    image_ids: list[str]
    rows: np.ndarray

    def nearest(self, image_id: str, count: int) -> list[tuple[str, float]]:
        """The images that are most like this one, by the cosine of their embeddings; none where it has none."""
        place = self.places.get(image_id)
        if place is None:
            return []
        wanted = self.rows[place].astype(np.float32)
        starts = range(0, len(self.rows), CHUNK_ROWS)
        cosines = np.concatenate(
            [self.rows[start : start + CHUNK_ROWS].astype(np.float32) @ wanted for start in starts]
        )
        cosines[place] = -np.inf
        best = np.argsort(-cosines)[: min(count, len(cosines) - 1)]
        return [(self.image_ids[one], float(cosines[one])) for one in best]


class KeptEmbeddings:
    """The embeddings of one home, as trainings leave them among its caches: of images that were trained on."""

    def __init__(self, caches: Path) -> None:
        self._caches = caches
        self._reading = threading.Lock()
        self._state: list[tuple[str, int]] = []
        self._embeddings: Embeddings | None = None

    def now(self) -> Embeddings | None:
        """Those of the backbone that was used last; None where nothing was trained yet."""
        folders = [folder for name in FRAMEWORKS for folder in self._caches.glob(f"{name}-*") if folder.is_dir()]
        if not folders:
            return None
        newest = max(folders, key=lambda folder: (folder.stat().st_mtime, folder.name))
        state = sorted((str(file), file.stat().st_size) for file in newest.glob("*.parquet"))
        with self._reading:
            if state != self._state:
                self._embeddings, self._state = read_embeddings(newest), state
            return self._embeddings


def read_embeddings(folder: Path) -> Embeddings | None:
    """All embeddings of a backbone, once for each image; None for no images."""
    places: dict[str, int] = {}
    image_ids: list[str] = []
    features = 0
    with tempfile.TemporaryFile() as file:
        for ids, embeddings in EmbeddingStore(str(folder)).embeddings():
            new = []
            for row, image_id in enumerate(ids):
                if image_id not in places:
                    places[image_id] = len(image_ids)
                    image_ids.append(image_id)
                    new.append(row)
            lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
            file.write((embeddings / np.maximum(lengths, 1e-12)).astype(np.float16)[new].tobytes())
            features = embeddings.shape[1]
        file.flush()
        if not image_ids:
            return None
        rows = np.memmap(file, np.float16, "r", shape=(len(image_ids), features))
    return Embeddings(folder.name.partition("-")[0], places, image_ids, rows)


def look_alikes(index: Index, image: Row) -> list[Row]:
    """Current images whose perceptual hash, or mirrored one, differs in the fewest `bits` of 64; the nearest first."""
    if image["perceptual_hash"] is None:
        return []
    values = {"hash": image["perceptual_hash"], "n": image["n"], "shown": SHOWN}
    return index.rows(NEAR, values)
