"""One small run of each table: sixteen images, and a model version of a few lines of code."""

from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.given_labels import given_labels
from image_assets.data.label_corrections import label_corrections
from image_assets.models.image_embeddings import image_embeddings
from image_assets.models.model_evaluations import model_evaluations
from image_assets.models.stage_history import stage_history
from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from image_assets.predictions.prediction_alerts import prediction_alerts
from image_assets.predictions.prediction_drift import prediction_drift
from image_assets.predictions.version_agreements import version_agreements
from image_assets.schemas import (
    CURRENT_PREDICTIONS,
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_PREDICTIONS,
    IMAGE_SAMPLES,
    IMAGE_SPLITS,
    MODEL_EVALUATIONS,
    PREDICTION_DRIFT,
    RAW_IMAGES,
    STAGE_HISTORY,
    TABLES,
)
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import create_resources, read_settings
from tests.conftest import Ingested
from tests.support.predictions_run import logged_version

pytestmark = [pytest.mark.spark, pytest.mark.small_run]

MODELS_AND_PREDICTIONS = [
    label_corrections,
    given_labels,
    image_embeddings,
    model_evaluations,
    stage_history,
    image_predictions,
    current_predictions,
    version_agreements,
    prediction_drift,
    prediction_alerts,
]


def test_each_table_gets_its_rows(
    ingested: Ingested, ingested_tables: DeltaTables, registry: ModelRegistry, home: Path
) -> None:
    variables = {"IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": str(ingested.home / "landing")}
    settings = read_settings({**variables, "IMAGE_ASSETS_DEVICE": "cpu", "IMAGE_ASSETS_BACKBONE": "none"})
    resources = {
        **create_resources(settings),
        "pyspark": ingested_tables.pyspark,
        "delta_tables": ingested_tables,
        "model_registry": registry,
    }
    serving = logged_version(registry, home)
    registry.promote(serving.version, "Production")

    run = dg.materialize(MODELS_AND_PREDICTIONS, resources=resources, instance=dg.DagsterInstance.ephemeral())

    assert run.success
    rows = {table.name: ingested_tables.snapshot(table).rows for table in TABLES}
    images = [IMAGE_FILES, RAW_IMAGES, FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS, IMAGE_SAMPLES]
    expected = dict.fromkeys((table.name for table in [*images, IMAGE_PREDICTIONS, CURRENT_PREDICTIONS]), 16)
    expected |= {MODEL_EVALUATIONS.name: 1, STAGE_HISTORY.name: 1, PREDICTION_DRIFT.name: 1}
    assert {name: count for name, count in rows.items() if count} == expected
