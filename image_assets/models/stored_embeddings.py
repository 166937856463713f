"""The embeddings in `image_embeddings`, as arrays."""

import json
from collections.abc import Collection

import numpy as np

from image_assets.models.embeddings import StoredEmbeddings
from image_assets.schemas import IMAGE_EMBEDDINGS
from resources.delta.delta_log import table_files
from resources.delta.delta_tables import PART
from resources.delta.stored_tables import StoredTables


def stored_embeddings(
    delta_tables: StoredTables, backbone: str, image_ids: Collection[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """The ids of the images that have an embedding by a backbone, and the embeddings (n, features) float32.

    Args:
        delta_tables: The tables.
        backbone: The value of the column `backbone`; of a version, that in its tag `embedding_backbone`.
        image_ids: The only images to read; None for all.
    """
    parts = [*StoredEmbeddings(embedding_files(delta_tables), backbone).read(image_ids)]
    if not parts:
        return [], np.empty((0, 0), np.float32)
    ids = [image_id for part, _ in parts for image_id in part]
    return ids, np.concatenate([embeddings for _, embeddings in parts]).astype(np.float32)


def embedding_files(delta_tables: StoredTables) -> tuple[str, ...]:
    """The addresses of the table's files, at the version that it is pinned at or the newest."""
    if not delta_tables.holds(IMAGE_EMBEDDINGS):
        return ()
    version = delta_tables.version_to_read(IMAGE_EMBEDDINGS)
    return tuple(file.url for file in table_files(delta_tables.uri(IMAGE_EMBEDDINGS), version).files)


def newest_backbone(delta_tables: StoredTables) -> str | None:
    """The backbone whose embeddings were written last; None without embeddings."""
    if delta_tables.newest_version(IMAGE_EMBEDDINGS) is None:
        return None
    commit = delta_tables.newest_commit(IMAGE_EMBEDDINGS, lambda commit: '"backbone"' in commit.get(PART, ""))
    return json.loads(commit[PART])["backbone"] if commit else None
