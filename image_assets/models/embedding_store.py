"""What a backbone made of images, kept: each image is embedded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
