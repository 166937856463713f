"""A home written by version 0.1.0 opens: its tables get their new columns, and nothing is computed again."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from image_assets.data.audit import audit
from image_assets.data.image_splits import read_split, split_digest
from image_assets.jobs.promote_model import move
from image_assets.models.model_evaluations import SPLIT, evaluate_new
from image_assets.models.scoring import score_images
from image_assets.models.stage_history import Promotion, record_changes
from image_assets.models.version_ids import identify_rows
from image_assets.predictions.alert_rules import AlertRule, AlertRules
from image_assets.predictions.image_predictions import SCORED_COLUMNS, with_predictions
from image_assets.predictions.prediction_alerts import record_new
from image_assets.schemas import (
    CURRENT_PREDICTIONS,
    FEATURED_IMAGES,
    IMAGE_PREDICTIONS,
    MODEL_EVALUATIONS,
    PREDICTION_ALERTS,
    PREDICTION_DRIFT,
    STAGE_HISTORY,
    VERSION_AGREEMENTS,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.conftest import Ingested
from tests.support.predictions_run import home_instance, logged_version, run_predictions

pytestmark = pytest.mark.spark

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
IDS = ("version_id", "compared_with_id")
LATER = (*IDS, "dataset", "corruption", "abstained", "most_probable_label", "distance_from_training", "unlike_training")
WITHOUT_NAME = (MODEL_EVALUATIONS, STAGE_HISTORY, VERSION_AGREEMENTS, PREDICTION_DRIFT, PREDICTION_ALERTS)
RULE = AlertRule(name="balls", labels=["ball"], send_to=["oncall"])


def as_released(table: Table) -> Table:
    """The table as version 0.1.0 declared it: `model_name` in predictions only and never a key, no `version_id`."""
    lacking = {*LATER, *(["model_name"] if table in WITHOUT_NAME else [])}
    fields = [field for field in table.columns if field.name not in lacking]
    keys = tuple(key for key in table.keys if key not in {*LATER, "model_name"})
    return replace(table, keys=keys, columns=StructType(fields))


def add(delta_tables: DeltaTables, table: Table, *rows: dict[str, Any]) -> None:
    released = as_released(table)
    schema = to_arrow_schema(released.columns)
    whole = [{**dict.fromkeys(schema.names), **row} for row in rows]
    delta_tables.merge(pa.Table.from_pylist(whole, schema), released, updates={})


@pytest.fixture
def version(ingested_tables: DeltaTables, registry: ModelRegistry, home: Path) -> ModelVersion:
    """The production version of a home of version 0.1.0, whose predictions and figures are all there."""
    logged_version(registry, home)
    now = datetime.now(UTC)  # rows are written after their version was registered
    version = registry.promote(1, "Production", Promotion("Production", "promote_model", "Ada").to_tags())
    # Their position was in a checkpoint of Spark, which is not read any more, and in no commit of the table.
    images = ingested_tables.dataframe(FEATURED_IMAGES).select(SCORED_COLUMNS.fieldNames())
    predictions = with_predictions(images, registry, version, "cpu", score_images)
    ingested_tables.append(predictions, as_released(IMAGE_PREDICTIONS))
    key = {"model_version": 1}
    digest = split_digest(read_split(ingested_tables, SPLIT))
    figures = {"accuracy": 0.5, "balanced_accuracy": 0.5, "rows_digest": digest, "evaluated_at": now}
    add(ingested_tables, MODEL_EVALUATIONS, {**key, "split": SPLIT, "framework": "torch", **figures})
    moved = {"changed_at": now, "from_stage": "None", "to_stage": "Production", "aliases": ["production"]}
    promotion = Promotion.of(version)
    assert promotion
    add(ingested_tables, STAGE_HISTORY, {**key, "change": 1, **moved, "promotion_id": promotion.promotion_id})
    add(ingested_tables, VERSION_AGREEMENTS, {**key, "compared_with": 2, "images": 16, "compared_at": now})
    add(ingested_tables, PREDICTION_DRIFT, {**key, "day": date(2026, 11, 1), "images": 16, "measured_at": now})
    rows = ingested_tables.read(IMAGE_PREDICTIONS, ["path", "image_id", "label", "probability", "predicted_at"])
    sent = {**key, "rule": "balls", "receiver": "oncall", "matched_at": now, "state": "sent", "attempts": 1}
    add(ingested_tables, PREDICTION_ALERTS, *({**row, **sent} for row in rows.to_pylist()))
    for table in WITHOUT_NAME:
        names = [field.name for field in DeltaTable(ingested_tables.uri(table)).schema().fields]
        assert not {"model_name", "version_id"}.intersection(names)
    return version


def test_a_home_of_version_0_1_0_opens(
    version: ModelVersion, ingested: Ingested, ingested_tables: DeltaTables, registry: ModelRegistry, home: Path
) -> None:
    before = {table: ingested_tables.snapshot(table) for table in WITHOUT_NAME}
    predicted = predicted_at(ingested_tables)
    assert len(predicted) == before[PREDICTION_ALERTS].rows == 16
    # Nothing is evaluated, recorded or alerted again. These read the tables before any writer has opened them.
    tracking = MlflowTracking(tracking_uri=registry.tracking_uri, artifact_url=(home / "artifacts").as_uri())
    evaluated = evaluate_new(ingested_tables, registry, tracking, InferenceDevice(choice="cpu"))
    assert evaluated == ({1: 0.5}, {}), "the version's figures are those of the table"
    assert record_changes(registry.name, registry.versions(), ingested_tables) == []
    with home_instance(home) as instance:
        run = run_predictions(ingested_tables, registry, instance)
    assert run.success
    assert added(run, "image_predictions") == 0
    assert added(run, "current_predictions") == 16
    assert record_new(ingested_tables, AlertRules(rules=[RULE]), registry, NOON) == 0
    assert predicted_at(ingested_tables) == predicted, "no image is predicted again"
    # Every row belongs to the only model there was.
    for table in WITHOUT_NAME:
        rows = ingested_tables.read(table, table.keys)
        assert rows.num_rows == before[table].rows > 0
        assert set(rows["model_name"].to_pylist()) == {"image_classifier"}, table.name
        if table not in (VERSION_AGREEMENTS, PREDICTION_DRIFT):  # whose assets did not run
            assert set(rows["version_id"].to_pylist()) == {version.version_id}, table.name
    identify_rows(ingested_tables, registry.versions(), VERSION_AGREEMENTS, PREDICTION_DRIFT)
    for table in (VERSION_AGREEMENTS, PREDICTION_DRIFT):
        assert ingested_tables.read(table, ["version_id"])["version_id"].to_pylist() == [version.version_id]
    assert ingested_tables.read(PREDICTION_ALERTS, ["state"], pc.field("state") != "sent").num_rows == 0
    # The version can be moved, and its history goes on where it was.
    move(1, Promotion("Archived", "promote_model", "Ada"), registry, ingested_tables)
    history = ingested_tables.read(STAGE_HISTORY, ["model_name", "model_version", "change", "to_stage"]).to_pylist()
    key = {"model_name": "image_classifier", "model_version": 1}
    assert sorted(history, key=lambda row: row["change"]) == [
        {**key, "change": 1, "to_stage": "Production"},
        {**key, "change": 2, "to_stage": "Archived"},
    ]
    folder = ImageFolder(root=str(ingested.home / "landing"), settle_seconds=0)
    assert [finding for finding in audit(ingested_tables, folder) if finding.broken] == []
    assert ingested_tables.snapshot(CURRENT_PREDICTIONS).rows == 16


def predicted_at(delta_tables: DeltaTables) -> list[tuple]:
    """When each image was predicted, by path."""
    rows = delta_tables.read(IMAGE_PREDICTIONS, ["path", "predicted_at"]).sort_by("path")
    return list(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))


def added(run: dg.ExecuteInProcessResult, asset: str) -> object:
    """How many rows the run added to the asset's table."""
    (materialization,) = run.asset_materializations_for_node(asset)
    return materialization.metadata["rows_added"].value
