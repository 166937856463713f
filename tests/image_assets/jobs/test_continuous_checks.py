"""There is new work if the input of a job differs from what any run last processed."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.jobs.continuous import (
    CheckFailed,
    RunResources,
    alerts_to_send,
    files_to_ingest,
    images_to_predict,
    label_table_to_read,
)
from image_assets.predictions.image_predictions import image_predictions
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.mlflow_tracking import create_store
from resources.mlflow.model_registry import ModelRegistry
from tests.support.alert_run import predict, run
from tests.support.images import png, put
from tests.support.tables import tables_at

LEDGER = to_arrow_schema(IMAGE_FILES.columns)


def run_resources(**resources: object) -> RunResources:
    """These resources of a run."""
    return cast(RunResources, SimpleNamespace(**resources))


def report_materialization(instance: dg.DagsterInstance, asset: str, **metadata: str | int) -> None:
    """Records a materialization of the asset."""
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=metadata))


@pytest.mark.spark
def test_added_and_deleted_files_are_new_work_until_they_are_ingested(delta_tables: DeltaTables, landing: Path) -> None:
    instance = dg.DagsterInstance.ephemeral()

    def new_files(settle_seconds: float = 0) -> str:
        folder = ImageFolder(root=str(landing), settle_seconds=settle_seconds)
        return files_to_ingest(instance, run_resources(image_folder=folder, delta_tables=delta_tables))

    assert new_files() == ""
    other = put(landing, "other.png", png(2))
    for change in (lambda: put(landing, "a.png", png(1)), (landing / "a.png").unlink):
        change()
        assert new_files()
        ingest(delta_tables, ImageFolder(root=str(landing), settle_seconds=0), IngestConfig(), dg.get_dagster_logger())
        assert new_files() == ""
    elsewhere = other.rename(landing.with_name("other.png"))
    with pytest.raises(CheckFailed, match="1 of 1 current files are gone"):
        new_files()
    elsewhere.rename(other)
    put(landing, "b.png", png(3))
    assert "1 new or changed" in new_files()
    assert new_files(settle_seconds=3600) == "", "somebody may still be writing it"


def test_a_changed_label_table_is_new_work_until_it_is_read(tmp_path: Path) -> None:
    instance, labels = dg.DagsterInstance.ephemeral(), tmp_path / "labels.csv"
    resources = run_resources(label_table=ExternalTable(source=str(labels)))
    with pytest.raises(CheckFailed, match="labels.csv"):
        label_table_to_read(instance, resources)
    labels.write_text("path,label\n")
    assert label_table_to_read(instance, resources).endswith(", 11 bytes")
    report_materialization(instance, "given_labels", label_table_version=resources.label_table.version())
    assert label_table_to_read(instance, resources) == ""
    assert "no label table" in label_table_to_read(instance, run_resources(label_table=ExternalTable()))


@pytest.mark.spark
def test_a_missing_folder_fails_the_check(delta_tables: DeltaTables) -> None:
    resources = run_resources(image_folder=ImageFolder(root="/nowhere"), delta_tables=delta_tables)
    with pytest.raises(CheckFailed, match="/nowhere"):
        files_to_ingest(dg.DagsterInstance.ephemeral(), resources)


def test_a_damaged_ledger_is_not_taken_for_a_missing_folder(tmp_path: Path) -> None:
    delta_tables, folder = tables_at(tmp_path / "tables"), ImageFolder(root=str(tmp_path / "landing"))
    put(tmp_path, "landing/a.png", png(1))
    delta_tables.merge(pa.Table.from_pylist([{"path": "a", "state": "current"}], LEDGER), IMAGE_FILES, updates={})
    for file in (tmp_path / "tables" / "image_files").glob("*.parquet"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="parquet"):
        files_to_ingest(dg.DagsterInstance.ephemeral(), run_resources(image_folder=folder, delta_tables=delta_tables))


def test_an_unavailable_registry_fails_the_check() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        registry = ModelRegistry(tracking_uri=f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(CheckFailed, match="127.0.0.1"):
        images_to_predict(dg.DagsterInstance.ephemeral(), run_resources(model_registry=registry))


@pytest.mark.spark
def test_another_version_and_more_images_are_new_work_until_they_are_predicted(
    tmp_path: Path, ingested_tables: DeltaTables
) -> None:
    instance = dg.DagsterInstance.ephemeral()
    registry = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    create_store(registry.tracking_uri)
    resources = run_resources(delta_tables=ingested_tables, model_registry=registry)
    dg.materialize(
        [image_predictions],
        instance=instance,
        resources={
            "delta_tables": ingested_tables,
            "model_registry": registry,
            "inference_device": InferenceDevice(choice="cpu"),
        },
    )
    assert images_to_predict(instance, resources) == ""
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    client.create_model_version(registry.name, tmp_path.as_uri())
    assert images_to_predict(instance, resources) == ""
    registry.promote(1, "Production")
    assert images_to_predict(instance, resources) == "version 1 serves"
    images = ingested_tables.last_change(FEATURED_IMAGES)
    versions = {"serving_version": "1", "shadow_versions": "none"}
    report_materialization(instance, "image_predictions", **versions, featured_images_version=images)
    assert images_to_predict(instance, resources) == ""
    more = ingested_tables.dataframe(FEATURED_IMAGES).limit(1)
    ingested_tables.append(more, FEATURED_IMAGES)
    assert images_to_predict(instance, resources) == "featured_images has new rows"


def test_alerts_that_are_due_are_new_work(tmp_path: Path) -> None:
    instance, delta_tables = dg.DagsterInstance.ephemeral(), tables_at(tmp_path)
    resources = run_resources(delta_tables=delta_tables)
    assert alerts_to_send(instance, resources) == ""
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, "rules: [{name: sure roses, send_to: [oncall]}]", {"oncall": "json://127.0.0.1:9"})
    assert "oncall (1)" in alerts_to_send(instance, resources)
