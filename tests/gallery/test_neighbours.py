import os
from pathlib import Path

import numpy as np

from gallery.neighbours import LiveEmbeddings, nearest_by_hash
from gallery.queries import read_image
from gallery.server import gallery_of
from image_assets.models.embeddings import EmbeddingStore
from image_assets.predictions.image_index import Index
from resources.settings import read_settings
from tests.gallery.conftest import SmallHome


def test_the_nearest_by_embedding_have_the_smallest_angle(tmp_path: Path) -> None:
    embeddings = np.array([[1, 0], [5, 0.1], [0, 1], [-1, 0]])
    EmbeddingStore(str(tmp_path / "torch-1")).add(["a", "b", "c", "d"], embeddings)
    EmbeddingStore(str(tmp_path / "torch-1")).add(["a", "e"], np.array([[1, 0], [1, 1]]))
    found = LiveEmbeddings(tmp_path).current()
    assert found is not None
    assert found.framework == "torch"
    assert [image for image, _ in found.nearest("a", 3)] == ["b", "e", "c"]
    assert found.nearest("a", 1)[0][1] > 0.99
    assert len(found.nearest("a", 99)) == 4
    assert found.nearest("unknown", 3) == []


def test_embeddings_of_later_trainings_are_read(tmp_path: Path) -> None:
    live = LiveEmbeddings(tmp_path)
    assert live.current() is None
    store = EmbeddingStore(str(tmp_path / "tensorflow-1"))
    store.add(["a"], np.array([[1, 0]]))
    first = live.current()
    assert live.current() is first
    store.add(["b"], np.array([[0, 1]]))
    found = live.current()
    assert found is not None
    assert found.image_ids.__len__() == 2


def test_the_gallery_reads_embeddings_from_the_caches_folder_of_the_settings(tmp_path: Path) -> None:
    caches = tmp_path / "on another disk"
    variables = {"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "IMAGE_ASSETS_CACHES": str(caches)}
    EmbeddingStore(str(caches / "torch-1")).add(["a"], np.array([[1, 0]]))
    found = gallery_of(read_settings(variables)).embeddings.current()
    assert found is not None
    assert found.image_ids == ["a"]


def test_cache_folders_are_not_embeddings(tmp_path: Path) -> None:
    EmbeddingStore(str(tmp_path / "torch-1")).add(["a"], np.array([[1, 0]]))
    for name in ("training-v1-0", "test-v1-0", ".trainings", ".unfinished-0"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (2**33, 2**33))  # later than the embeddings
    found = LiveEmbeddings(tmp_path).current()
    assert found is not None
    assert found.image_ids == ["a"]


def test_the_nearest_by_hash_are_sorted_by_bits(photographs: SmallHome, index: Index) -> None:
    image = read_image(index, photographs.images[3]["path"])
    assert image is not None
    found = nearest_by_hash(index, image)
    assert len(found) == 12
    assert image["path"] not in {other["path"] for other in found}
    wanted = int(photographs.images[3]["perceptual_hash"], 16)
    bits = [
        min(
            (int(other["perceptual_hash"], 16) ^ wanted).bit_count(),
            (int(other["mirrored_hash"], 16) ^ wanted).bit_count(),
        )
        for number, other in enumerate(photographs.images)
        if number != 3
    ]
    assert [other["bits"] for other in found] == sorted(bits)[:12]
