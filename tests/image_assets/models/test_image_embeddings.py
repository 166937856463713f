"""One embedding for each image and backbone, computed once for each content."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from image_assets.models.backbones import MOBILENET_V2_LEVELS
from image_assets.models.embedding_networks import EmbeddingNetwork
from image_assets.models.image_embeddings import current_networks, follow_featured_images, image_embeddings
from image_assets.models.stored_embeddings import newest_backbone, stored_embeddings
from image_assets.schemas import FEATURED_IMAGES, IMAGE_EMBEDDINGS
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import WrittenFile
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import Table
from resources.files.file_system import to_path
from resources.training import BackboneWeights
from tests.support.embedded import BACKBONE, SIDE, add_rows, color_network, feature
from tests.support.images import opened, png, put
from tests.support.tables import tables_at


@dataclass(frozen=True)
class CountingNetwork(EmbeddingNetwork):
    """A network that records which images it computes."""

    computed: list[str] = field(default_factory=list)

    def rows(self, images: Iterable[Row]) -> Iterator[Row]:
        def counted() -> Iterator[Row]:
            for image in images:
                self.computed.append(image["image_id"])
                yield image

        return super().rows(counted())


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "a home")


@pytest.fixture
def network(tmp_path: Path) -> CountingNetwork:
    return CountingNetwork(**vars(color_network(tmp_path)))


def id_of(content: bytes) -> str:
    return sha256(content).hexdigest()


def rows(tables: DeltaTables) -> dict[tuple[str, str, str], bytes | None]:
    """The embeddings by key; no key may have several."""
    found = tables.read(IMAGE_EMBEDDINGS, IMAGE_EMBEDDINGS.columns.fieldNames()).to_pylist()
    by_key = {(row["path"], row["image_id"], row["backbone"]): row["embedding"] for row in found}
    assert len(by_key) == len(found)
    return by_key


def test_each_content_is_computed_once_and_each_image_has_its_embedding(
    tables: DeltaTables, network: CountingNetwork
) -> None:
    images = {f"file:/{number}": png(number) for number in range(100)}
    feature(tables, images | {"file:/copy": png(3), "file:/another": png(3)})
    assert follow_featured_images(tables, network).rows_added == 102
    assert sorted(network.computed) == sorted(map(id_of, images.values()))
    more = {"file:/3 again": png(3), "file:/new": png(200), "file:/new again": png(200)}
    feature(tables, more)
    assert follow_featured_images(tables, network).rows_added == 3
    assert network.computed[100:] == [id_of(png(200))]
    assert follow_featured_images(tables, network).rows_added == 0
    everything = images | {"file:/copy": png(3), "file:/another": png(3)} | more
    found = rows(tables)
    assert found.keys() == {(path, id_of(content), BACKBONE) for path, content in everything.items()}
    for path, content in everything.items():
        stored = np.frombuffer(found[path, id_of(content), BACKBONE] or b"", "<f2")
        expected = np.asarray(opened(content).resize((SIDE, SIDE))).mean(axis=(0, 1))
        np.testing.assert_allclose(stored, expected, atol=3)


def test_each_backbone_follows_by_itself(tables: DeltaTables, network: CountingNetwork) -> None:
    feature(tables, {f"file:/{number}": png(number) for number in range(3)})
    follow_featured_images(tables, network)
    other = replace(network, backbone="colors-other-1", computed=[])
    feature(tables, {"file:/new": png(7)})
    assert follow_featured_images(tables, other).rows_added == 4
    assert follow_featured_images(tables, network).rows_added == 1
    assert len(other.computed) == 4
    assert newest_backbone(tables) == BACKBONE
    ids, embeddings = stored_embeddings(tables, "colors-other-1", [id_of(png(7)), "unknown"])
    assert ids == [id_of(png(7))]
    assert (embeddings.shape, embeddings.dtype) == ((1, 3), np.float32)
    assert len(stored_embeddings(tables, BACKBONE)[0]) == 4
    assert stored_embeddings(tables, "none")[0] == []


class KilledTables(DeltaTables):
    """Tables whose run ends before or after the commit."""

    point: str

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        if table is IMAGE_EMBEDDINGS and self.point == "before":
            raise KeyboardInterrupt
        version = super().append_files(table, files, **more)
        if table is IMAGE_EMBEDDINGS:
            raise KeyboardInterrupt
        return version


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_run_that_ended_is_run_again_without_repeated_or_lost_rows(
    tables: DeltaTables, network: CountingNetwork, point: str
) -> None:
    feature(tables, {"file:/a": png(1), "file:/b": png(1), "file:/c": png(2)})
    killed = KilledTables(pyspark=DeltaSpark(spark_config={}), root=tables.root, point=point)
    with pytest.raises(KeyboardInterrupt):
        follow_featured_images(killed, network)
    follow_featured_images(tables, network)
    assert {path for path, _, _ in rows(tables)} == {"file:/a", "file:/b", "file:/c"}


def test_an_image_without_content_is_read_from_its_file_and_an_unreadable_one_is_null(
    tables: DeltaTables, network: CountingNetwork, tmp_path: Path
) -> None:
    large = put(tmp_path, "large %20.png", png(5, size=(300, 200)))
    path = to_path(str(large).encode())
    length = large.stat().st_size
    add_rows(
        tables,
        FEATURED_IMAGES,
        [
            {"path": path, "image_id": "large", "length": length, "content": None},
            {"path": "file:/gone.png", "image_id": "gone", "length": 9, "content": None},
            {"path": "file:/text.png", "image_id": "text", "length": 6, "content": b"a text"},
            {"path": "file:/a copy of the text.png", "image_id": "text", "length": 6, "content": b"a text"},
        ],
    )
    assert follow_featured_images(tables, network).rows_added == 4
    found = {image_id: embedding for (_, image_id, _), embedding in rows(tables).items()}
    assert found.keys() == {"large", "gone", "text"}
    assert found["gone"] is found["text"] is None
    expected = np.asarray(opened(large.read_bytes())).mean(axis=(0, 1))
    np.testing.assert_allclose(np.frombuffer(found["large"] or b"", "<f2"), expected, atol=2)
    assert stored_embeddings(tables, BACKBONE)[0] == ["large"]


def test_untrained_backbones_have_no_embeddings(tables: DeltaTables, tmp_path: Path) -> None:
    feature(tables, {"file:/a": png(1)})
    made = image_embeddings(
        dg.build_asset_context(),
        delta_tables=tables,
        petastorm_caches=PetastormCaches(root=str(tmp_path / "caches")),
        backbone=BackboneWeights(source="none"),
    )
    assert made.metadata["dagster/row_count"] == 0
    assert made.metadata["backbones"] == "none: the weights are untrained"
    assert not (tmp_path / "caches").exists()


def test_missing_weights_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    caches, weights = PetastormCaches(root=str(tmp_path)), BackboneWeights(source=str(tmp_path / "nowhere"))
    networks, faults = current_networks(caches, weights, MOBILENET_V2_LEVELS)
    assert networks == []
    assert len(faults) == 2
    assert all("nowhere, which is not a folder: expected" in fault for fault in faults.values())
