"""The images that are most like another one."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from gallery.neighbors import LiveEmbeddings, nearest_by_hash, read_embeddings
from gallery.pages import nearest_by_embedding
from gallery.queries import read_image
from gallery.server import gallery_of
from image_assets.models.image_embeddings import follow_featured_images
from image_assets.predictions.image_index import Index, read_index
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.settings import read_settings
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import append, featured, landed
from tests.support.embedded import BACKBONE, color_network, embed, feature
from tests.support.images import png
from tests.support.tables import tables_at

FIVE = {"a": [1.0, 0.0], "b": [5.0, 0.1], "c": [0.0, 1.0], "d": [-1.0, 0.0], "e": [1.0, 1.0]}


def follow(tables: DeltaTables, folder: Path, number: int) -> None:
    """Embeds one more image, as the asset does."""
    feature(tables, {f"file:/{number}": png(number)})
    follow_featured_images(tables, color_network(folder))


def test_the_nearest_by_embedding_have_the_smallest_angle(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    embed(tables, "net-torch-1", FIVE)
    embed(tables, "net-other-1", {"a": [0.0, 1.0], "f": [0.0, 1.0]})
    found = read_embeddings(tables, "net-torch-1")
    assert found is not None
    assert found.backbone == "net (torch)"
    assert [image for image, _ in found.nearest("a", 3)] == ["b", "e", "c"]
    assert found.nearest("a", 1)[0][1] > 0.99
    assert len(found.nearest("a", 99)) == 4
    assert found.nearest("unknown", 3) == []


def test_embeddings_of_later_images_are_read(tmp_path: Path) -> None:
    tables = tables_at(tmp_path / "tables")
    live = LiveEmbeddings(tables)
    assert live.current() is None
    assert not (tmp_path / "tables").exists(), "looking creates no table"
    follow(tables, tmp_path, 1)
    first = live.current()
    assert first is not None
    assert first.backbone == "colors (numpy)"
    assert live.current() is first
    follow(tables, tmp_path, 2)
    found = live.current()
    assert found is not None
    assert len(found.image_ids) == 2


def test_the_gallery_reads_the_tables_of_the_settings(tmp_path: Path) -> None:
    variables = {"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "IMAGE_ASSETS_STORAGE": str(tmp_path / "another disk")}
    follow(tables_at(tmp_path / "another disk" / "tables"), tmp_path, 1)
    assert gallery_of(read_settings(variables)).embeddings.current() is not None


def test_the_nearest_of_many_are_those_that_numpy_finds(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float16)
    tables = tables_at(tmp_path)
    embed(tables, BACKBONE, {str(number): vector.tolist() for number, vector in enumerate(vectors)})
    found = read_embeddings(tables, BACKBONE)
    assert found is not None
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines = unit @ unit[7]
    cosines[7] = -1
    nearest = found.nearest("7", 12)
    np.testing.assert_allclose([cosine for _, cosine in nearest], np.sort(cosines)[:-13:-1], atol=1e-3)


def test_only_current_images_are_neighbors_however_many_others_are_nearer(own_home: SmallHome) -> None:
    tables, image = own_home.delta_tables, own_home.images[0]
    contents = [image["content"] + bytes([number]) for number in range(40)]  # the same pixels, and bytes after the end
    former = [image | {"image_id": sha256(content).hexdigest(), "content": content} for content in contents]
    append(tables, FEATURED_IMAGES, former)
    follow_featured_images(tables, color_network(own_home.home))
    found = nearest_by_embedding(own_home.index(), LiveEmbeddings(tables), image)["nearest_by_embedding"]
    assert len({one["path"] for one in found} - {image["path"]}) == 12


def test_a_single_image_has_no_neighbors_and_one_without_an_embedding_has_none(tmp_path: Path) -> None:
    tables, file = tables_at(tmp_path / "tables"), landed(tmp_path, "roses/one.png", png(1), 1)
    append(tables, IMAGE_FILES, [file])
    append(tables, FEATURED_IMAGES, [featured(file, png(1), tmp_path)])
    assert nearest_by_embedding(read_index(tables), LiveEmbeddings(tables), file)["nearest_by_embedding"] is None
    follow_featured_images(tables, color_network(tmp_path))
    assert nearest_by_embedding(read_index(tables), LiveEmbeddings(tables), file)["nearest_by_embedding"] == []


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
