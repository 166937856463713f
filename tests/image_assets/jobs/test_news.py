"""There is news when what a job takes in is not what it last took in, whichever run that was."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
from mlflow import MlflowClient

from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.jobs.continuous import (
    NotNow,
    Ready,
    either,
    news_of_alerts,
    news_of_files,
    news_of_labels,
    news_to_predict,
)
from image_assets.predictions.image_predictions import image_predictions
from image_assets.schemas import FEATURED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import OutsideTable
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.mlflow_tracking import create_store
from resources.mlflow.model_registry import ModelRegistry
from tests.support.alert_run import predict, run
from tests.support.images import png, put
from tests.support.tables import tables_at


def ready(**resources: object) -> Ready:
    """These resources of a run."""
    return cast(Ready, SimpleNamespace(**resources))


def say(instance: dg.DagsterInstance, asset: str, **metadata: str | int) -> None:
    """What a run says of an asset that it materialized."""
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=metadata))


@pytest.mark.spark
def test_files_that_land_or_leave_are_news_until_they_are_ingested(delta_tables: DeltaTables, landing: Path) -> None:
    instance = dg.DagsterInstance.ephemeral()

    def news(settle_seconds: float = 0) -> str:
        folder = ImageFolder(root=str(landing), settle_seconds=settle_seconds)
        return news_of_files(instance, ready(image_folder=folder, delta_tables=delta_tables))

    assert news() == ""
    for change in (lambda: put(landing, "a.png", png(1)), (landing / "a.png").unlink):
        change()
        assert news()
        ingest(delta_tables, ImageFolder(root=str(landing), settle_seconds=0), IngestConfig(), dg.get_dagster_logger())
        assert news() == ""
    put(landing, "b.png", png(3))
    assert news() == "1 files, 1 looked at: 1 new or changed"
    assert news(settle_seconds=3600) == "", "it may still be written"


def test_another_label_table_is_news_until_it_is_read(tmp_path: Path) -> None:
    instance, labels = dg.DagsterInstance.ephemeral(), tmp_path / "labels.csv"
    now = ready(label_table=OutsideTable(source=str(labels)))
    with pytest.raises(NotNow, match="is not there"):
        news_of_labels(instance, now)
    labels.write_text("path,label\n")
    assert news_of_labels(instance, now).endswith(", 11 bytes")
    say(instance, "given_labels", label_table_version=now.label_table.version())
    assert news_of_labels(instance, now) == ""
    assert news_of_labels(instance, ready(label_table=OutsideTable())) == "the label table: no label table any more"


@pytest.mark.spark
def test_a_folder_that_is_away_is_no_news(delta_tables: DeltaTables) -> None:
    away = ready(image_folder=ImageFolder(root="/nowhere"), delta_tables=delta_tables)
    with pytest.raises(NotNow, match="does not exist"):
        news_of_files(dg.DagsterInstance.ephemeral(), away)


def test_a_registry_that_is_down_is_no_news() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        registry = ModelRegistry(tracking_uri=f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(NotNow, match="does not answer"):
        news_to_predict(dg.DagsterInstance.ephemeral(), ready(model_registry=registry))


@pytest.mark.spark
def test_another_version_and_more_images_are_news_until_they_are_predicted(
    tmp_path: Path, ingested_tables: DeltaTables
) -> None:
    instance = dg.DagsterInstance.ephemeral()
    registry = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    create_store(registry.tracking_uri)
    now = ready(delta_tables=ingested_tables, model_registry=registry)
    dg.materialize(
        [image_predictions],
        instance=instance,
        resources={
            "delta_tables": ingested_tables,
            "model_registry": registry,
            "inference_device": InferenceDevice(choice="cpu"),
        },
    )
    assert news_to_predict(instance, now) == ""
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    client.create_model_version(registry.name, tmp_path.as_uri())
    assert news_to_predict(instance, now) == ""
    registry.promote(1, "Production")
    assert news_to_predict(instance, now) == "version 1 serves"
    images = ingested_tables.last_change(FEATURED_IMAGES)
    say(instance, "image_predictions", serving_version="1", shadow_versions="none", featured_images_version=images)
    assert news_to_predict(instance, now) == ""
    more = ingested_tables.dataframe(FEATURED_IMAGES).limit(1)
    ingested_tables.append(more, FEATURED_IMAGES)
    assert news_to_predict(instance, now) == "featured_images has new rows"


def test_alerts_that_wait_are_news_until_they_are_sent(tmp_path: Path) -> None:
    instance, delta_tables = dg.DagsterInstance.ephemeral(), tables_at(tmp_path)
    now = ready(delta_tables=delta_tables)
    assert news_of_alerts(instance, now) == ""
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, "rules: [{name: sure roses, send_to: [oncall]}]", {"oncall": "json://127.0.0.1:9"})
    assert news_of_alerts(instance, now).startswith("alerts wait for oncall (1) since ")


@pytest.mark.parametrize(("first", "second", "expected"), [("a", "b", "a"), ("", "b", "b"), ("", "", "")])
def test_of_two_kinds_of_news_the_first_that_there_is_counts(first: str, second: str, expected: str) -> None:
    assert either(lambda *_: first, lambda *_: second)(dg.DagsterInstance.ephemeral(), ready()) == expected
