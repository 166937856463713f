"""There is news when what a job takes in is not what it last took in, whichever run that was."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
from mlflow import MlflowClient

from image_assets.news import NotNow, Ready, news_of_files, news_to_predict
from image_assets.predictions.image_predictions import image_predictions
from image_assets.schemas import FEATURED_IMAGES
from resources.delta_tables import DeltaTables
from resources.file_system import fingerprint
from resources.image_folder import ImageFolder
from resources.inference_device import InferenceDevice
from resources.mlflow_tracking import create_store
from resources.model_registry import ModelRegistry
from tests.images import png, put


def ready(**resources: object) -> Ready:
    """These resources of a run."""
    return cast(Ready, SimpleNamespace(**resources))


def say(instance: dg.DagsterInstance, asset: str, **metadata: str | int) -> None:
    """What a run says of an asset that it materialized."""
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=metadata))


def test_files_that_land_or_leave_are_news_until_they_are_ingested(landing: Path) -> None:
    instance = dg.DagsterInstance.ephemeral()
    folder = ImageFolder(root=str(landing), settle_seconds=0)
    assert news_of_files(instance, ready(image_folder=folder))
    for change in (lambda: None, lambda: put(landing, "a.png", png(1)), (landing / "a.png").unlink):
        change()
        say(instance, "image_files", folder_fingerprint=fingerprint(folder.list_files()))
        assert news_of_files(instance, ready(image_folder=folder)) == ""
        put(landing, "b.png", png(2))
        assert news_of_files(instance, ready(image_folder=folder)) == "files landed, changed or left"
        (landing / "b.png").unlink()
    still_written = ImageFolder(root=str(landing), settle_seconds=3600)
    put(landing, "c.png", png(3))
    assert news_of_files(instance, ready(image_folder=still_written)) == ""


def test_a_folder_that_is_away_is_no_news() -> None:
    with pytest.raises(NotNow, match="does not exist"):
        news_of_files(dg.DagsterInstance.ephemeral(), ready(image_folder=ImageFolder(root="/nowhere")))


def test_a_registry_that_is_down_is_no_news(tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path}")
    with pytest.raises(NotNow):
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
    say(instance, "image_predictions", serving_version="1", featured_images_version=images)
    assert news_to_predict(instance, now) == ""
    more = ingested_tables.read(FEATURED_IMAGES).limit(1)
    ingested_tables.append(more, FEATURED_IMAGES)
    assert news_to_predict(instance, now) == "featured_images has new rows"
