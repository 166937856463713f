"""Embeddings that are stored and found again."""

from pathlib import Path

import numpy as np

from image_assets.models.embeddings import EmbeddingStore


def test_what_was_added_is_found_and_what_was_cut_off_is_not(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path / "embeddings"))
    assert store.image_ids() == frozenset()
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 3), np.float32)
    store.add(["a", "b"], first)
    store.add(["c"], second)
    (tmp_path / "embeddings" / ".cut-off").write_bytes(b"PAR1")
    assert store.image_ids() == {"a", "b", "c"}
    found = {
        image_id: row.tolist() for ids, rows in store.embeddings() for image_id, row in zip(ids, rows, strict=True)
    }
    assert found == {"a": [0, 1, 2], "b": [3, 4, 5], "c": [1, 1, 1]}
