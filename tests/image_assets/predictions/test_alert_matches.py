"""Predictions meet rules by label, probability and stage, and each is met once."""

import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.predictions.alert_rules import AlertRule, AlertRules
from image_assets.predictions.alert_sending import merge_alerts
from image_assets.predictions.prediction_alerts import matching_predictions, new_alerts, predictions_in
from image_assets.schemas import IMAGE_FILES, IMAGE_PREDICTIONS, PREDICTION_ALERTS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.mlflow_tracking import create_store
from resources.mlflow.model_registry import ModelRegistry
from tests.support.alert_run import NOON, alerts, predict

UPDATES = {"path": "new.path"}


def to_rule(**fields: object) -> AlertRule:
    return AlertRule.model_validate({"name": "a rule", "send_to": ["oncall"], **fields})


def record_new(delta_tables: DeltaTables, *rules: AlertRule) -> int:
    """How many alerts are new."""
    predictions = {"Production": predictions_in("Production", delta_tables, ModelRegistry(tracking_uri=""))}
    known = delta_tables.read(PREDICTION_ALERTS, PREDICTION_ALERTS.keys).to_pandas()
    return len(merge_alerts(delta_tables, new_alerts(AlertRules(rules=list(rules)), predictions, known, NOON)))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (to_rule(), "abcd"),
        (to_rule(labels=["roses"]), "abc"),
        (to_rule(labels=["roses", "tulips"]), "abcd"),
        (to_rule(labels=["daisy"]), ""),
        (to_rule(minimum_probability=0.9), "bcd"),
        (to_rule(maximum_probability=0.9), "ab"),
        (to_rule(minimum_probability=0.7, maximum_probability=0.7), "a"),
        (to_rule(labels=["tulips"], minimum_probability=0.95), "d"),
    ],
)
def test_a_rule_is_met_by_label_and_probability_with_its_bounds(
    delta_tables: DeltaTables, rule: AlertRule, expected: str
) -> None:
    known = [("a", "roses", 0.7), ("b", "roses", 0.9), ("c", "roses", 1), ("d", "tulips", 0.99)]
    predict(delta_tables, *known, ("an image that the model could not read", None, None))
    predictions = predictions_in("Production", delta_tables, ModelRegistry(tracking_uri=""))
    assert "".join(sorted(matching_predictions(rule, predictions)["path"])) == expected


def test_abstentions_meet_the_rules_that_look_for_unsure_predictions(delta_tables: DeltaTables) -> None:
    predict(delta_tables, ("a", "roses", 0.5), ("b", "roses", 0.5))
    predictions = predictions_in("Production", delta_tables, ModelRegistry(tracking_uri=""))
    predictions.loc[predictions["path"] == "b", ["label", "abstained"]] = [None, True]
    unsure, sure, of_roses = (
        to_rule(maximum_probability=0.6),
        to_rule(minimum_probability=0.1),
        to_rule(labels=["roses"], maximum_probability=0.6),
    )
    assert sorted(matching_predictions(unsure, predictions)["path"]) == ["a", "b"]
    assert matching_predictions(sure, predictions)["path"].tolist() == ["a"]
    assert matching_predictions(of_roses, predictions)["path"].tolist() == ["a"]


def test_each_prediction_is_met_once_by_each_rule(delta_tables: DeltaTables) -> None:
    rules = to_rule(), to_rule(name="another", send_to=["oncall", "team"])
    predict(delta_tables, ("a", "roses", 1))
    assert [record_new(delta_tables, *rules) for _ in range(2)] == [3, 0]
    predict(delta_tables, ("b", "roses", 1))
    assert record_new(delta_tables, *rules) == 3
    predict(delta_tables, ("a", "roses", 1), version=2)
    assert record_new(delta_tables, *rules) == 3, "another version's prediction is another one"


def test_a_rule_for_the_first_time_is_met_once_by_each_file(delta_tables: DeltaTables) -> None:
    rule = to_rule(first_time_only=True, labels=["roses"])
    predict(delta_tables, ("a", "tulips", 1), ("b", "roses", 1))
    assert record_new(delta_tables, rule) == 1
    predict(delta_tables, ("a", "roses", 1), ("b", "roses", 1), version=2)
    assert record_new(delta_tables, rule) == 1
    predict(delta_tables, ("a", "roses", 1), ("b", "roses", 1), version=3)
    assert record_new(delta_tables, rule) == 0
    assert alerts(delta_tables, "path", "model_version") == [("a", 2), ("b", 1)]


def test_another_stage_is_that_of_versions_that_served_once(delta_tables: DeltaTables, tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    create_store(registry.tracking_uri)
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    for _ in range(3):
        client.create_model_version(registry.name, tmp_path.as_uri())
    for version, stage in ((1, "Archived"), (2, "Archived"), (3, "Production")):
        registry.promote(version, stage)
    ids = {version.version: version.version_id for version in registry.versions()}
    answers = [("a", version, "roses", 1.0) for version in (1, 2, 3)] + [("gone", 1, "roses", 1.0)]
    predictions = [
        {
            "path": path,
            "image_id": path,
            "model_name": model_name,
            "model_version": version,
            "version_id": ids[version],
            "label": label,
            "probability": probability,
        }
        for model_name in (registry.name, "another_classifier")
        for path, version, label, probability in answers
    ]
    files = [
        {"path": "a", "image_id": "a", "state": "current"},
        {"path": "gone", "image_id": "gone", "state": "missing"},
    ]
    for table, rows in ((IMAGE_PREDICTIONS, predictions), (IMAGE_FILES, files)):
        delta_tables.merge(pa.Table.from_pylist(rows, to_arrow_schema(table.columns)), table, updates=UPDATES)
    found = {stage: predictions_in(stage, delta_tables, registry) for stage in ("Archived", "Staging", "Production")}
    assert sorted(found["Archived"]["model_version"]) == [1, 2]
    assert [len(found[stage]) for stage in ("Staging", "Production")] == [0, 0], "none of current_predictions"
    rules = AlertRules(rules=[to_rule(stage="Archived"), to_rule(name="once", stage="Archived", first_time_only=True)])
    known = delta_tables.read(PREDICTION_ALERTS, PREDICTION_ALERTS.keys).to_pandas()
    new = new_alerts(rules, found, known, NOON)
    assert sorted(zip(new["rule"], new["model_version"], strict=True)) == [("a rule", 1), ("a rule", 2), ("once", 2)]


def test_a_hundred_thousand_predictions_take_about_a_second() -> None:
    count = 100_000
    paths = [f"file:/photos/{number:06}.jpg" for number in range(count)]
    predictions = pd.DataFrame({"path": paths, "image_id": paths, "label": "roses", "probability": 1.0}).assign(
        model_name="image_classifier", model_version=1, version_id="1", abstained=False
    )
    known = predictions.iloc[: count // 2].assign(rule="a rule", receiver="oncall")[list(PREDICTION_ALERTS.keys)]
    rules = AlertRules(rules=[to_rule(minimum_probability=0.5)])
    since = time.process_time()
    new = new_alerts(rules, {"Production": predictions}, known, NOON)
    assert time.process_time() - since < 5, "usually a fifth of a second"
    assert len(new) == count // 2
