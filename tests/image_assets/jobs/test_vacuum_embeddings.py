"""Embeddings of backbones that nothing uses any more are deleted, and all others stay."""

from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient

from image_assets.jobs.vacuum_tables import stored_backbones, vacuum_tables
from image_assets.models.embedding_networks import EmbeddingNetwork
from image_assets.models.image_embeddings import follow_featured_images
from image_assets.models.lineage import EMBEDDING_BACKBONE
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry
from tests.support.embedded import color_network, feature
from tests.support.images import png
from tests.support.tables import tables_at

CURRENT, OF_A_VERSION, OF_AN_ARCHIVED_ONE, FORMER = "colors-a-1", "colors-b-1", "colors-c-1", "colors-a-0"


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, EmbeddingNetwork]:
    backbones = (CURRENT, OF_A_VERSION, OF_AN_ARCHIVED_ONE, FORMER)
    return {backbone: color_network(tmp_path, backbone) for backbone in backbones}


@pytest.fixture
def tables(tmp_path: Path, registry: ModelRegistry, networks: dict[str, EmbeddingNetwork]) -> DeltaTables:
    """Images that four backbones have embedded; two of them are those of model versions, one of which is archived."""
    tables = tables_at(tmp_path / "tables")
    feature(tables, {"file:/a": png(1), "file:/b": png(2)})
    for network in networks.values():
        follow_featured_images(tables, network)
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    for backbone in (OF_A_VERSION, OF_AN_ARCHIVED_ONE):
        tags = {EMBEDDING_BACKBONE: backbone, "table_versions": '{"featured_images": 1}'}
        client.create_model_version(registry.name, "file:///nowhere", tags=tags)
    registry.promote(2, "Archived")
    return tables


def vacuum(
    tables: DeltaTables,
    registry: ModelRegistry,
    last: dict[str, str],
    table: str = "image_embeddings",
    **config: object,
) -> list[dict]:
    """The report of a vacuum after the last run of image_embeddings had this metadata; none if it is empty."""
    with dg.DagsterInstance.ephemeral() as instance:
        if last:
            instance.report_runless_asset_event(dg.AssetMaterialization("image_embeddings", metadata=last))
        result = vacuum_tables.execute_in_process(
            run_config={"tables": [table], "retention_hours": 0, **config},
            resources={"delta_tables": tables, "model_registry": registry},
            instance=instance,
        )
    (event,) = result.filter_events(lambda event: event.is_successful_output and event.step_key == "report_vacuumed")
    report = event.step_output_data.metadata["vacuumed"]
    assert isinstance(report, dg.TableMetadataValue)
    return [dict(record.data) for record in report.records]


def test_unused_backbones_are_deleted_and_embedded_again_when_they_come_back(
    tables: DeltaTables, registry: ModelRegistry, networks: dict[str, EmbeddingNetwork]
) -> None:
    last = {"backbones": CURRENT}
    reported = vacuum(tables, registry, last)
    assert [(row["table"], row["done"]) for row in reported[:2]] == [
        (f"image_embeddings: {FORMER}", "rows would be deleted"),
        (f"image_embeddings: {OF_AN_ARCHIVED_ONE}", "rows would be deleted"),
    ]
    assert len(stored_backbones(tables)) == 4
    reported = vacuum(tables, registry, last, dry_run=False)
    assert stored_backbones(tables) == [CURRENT, OF_A_VERSION]
    assert reported[-1]["done"] == "removed"
    assert reported[-1]["files"] >= 2
    assert follow_featured_images(tables, networks[CURRENT]).rows_added == 0
    assert follow_featured_images(tables, networks[FORMER]).rows_added == 2


@pytest.mark.parametrize("last", [{}, {"backbones": CURRENT}])
def test_files_are_kept_for_a_backbone_only_while_it_is_followed(
    tables: DeltaTables, registry: ModelRegistry, networks: dict[str, EmbeddingNetwork], last: dict[str, str]
) -> None:
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    for version in registry.versions():
        client.delete_model_version(registry.name, str(version.version))
    feature(tables, {"file:/c": png(3)})
    follow_featured_images(tables, networks[CURRENT])
    files = {*DeltaTable(tables.uri(FEATURED_IMAGES)).file_uris()}
    DeltaTable(tables.uri(FEATURED_IMAGES)).optimize.compact()
    vacuum(tables, registry, last, "featured_images", dry_run=False)
    left = {file for file in files if Path(file.removeprefix("file://")).is_file()}
    assert bool(left) == (not last)


@pytest.mark.parametrize(
    "last", [{}, {"backbones": "none: the weights are untrained", "torch_fault": "OSError: no space"}]
)
def test_nothing_is_deleted_while_it_is_unclear_what_is_used(
    tables: DeltaTables, registry: ModelRegistry, last: dict[str, str]
) -> None:
    assert [row["table"] for row in vacuum(tables, registry, last, dry_run=False)] == ["image_embeddings"]
    assert len(stored_backbones(tables)) == 4
