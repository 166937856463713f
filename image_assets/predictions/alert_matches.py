"""Which predictions meet which rules, and were not met before."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from image_assets.current_files import current_keys
from image_assets.predictions.alert_rules import AlertRule, AlertRules
from image_assets.predictions.alert_states import WAITING
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_PREDICTIONS, PREDICTION_ALERTS
from resources.model_registry import SERVING_STAGE, ModelRegistry
from resources.thin_tables import ThinTables

READ = ["path", "image_id", "model_version", "label", "probability", "predicted_at"]
ONCE_FOR_A_FILE = ["path", "rule", "receiver"]


def predictions_in(stage: str, thin_tables: ThinTables, model_registry: ModelRegistry) -> pd.DataFrame:
    """What model versions in the stage say of the current files.

    Those of the serving version are current_predictions. A version in another stage has predictions from when it was
    in Staging or served; what it has not been asked then, it is not asked for an alert.
    """
    if stage == SERVING_STAGE:
        return thin_tables.read(CURRENT_PREDICTIONS, READ).to_pandas(timestamp_as_object=True)
    versions = [version for version, its_stage in model_registry.stages().items() if its_stage == stage]
    of_versions = pc.field("model_version").isin(pa.array(versions, pa.int32()))
    predictions = thin_tables.read(IMAGE_PREDICTIONS, READ, of_versions).to_pandas(timestamp_as_object=True)
    return predictions.merge(current_keys(thin_tables))


def meeting(rule: AlertRule, predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions that meet the rule; an image without an answer meets none."""
    meets = predictions["label"].notna()
    if rule.labels is not None:
        meets &= predictions["label"].isin(rule.labels)
    # A number is compared as float32, as the table holds them: what is 0.9 there meets 0.9.
    if rule.minimum_probability is not None:
        meets &= predictions["probability"] >= rule.minimum_probability
    if rule.maximum_probability is not None:
        meets &= predictions["probability"] <= rule.maximum_probability
    return predictions.loc[meets]


def without_known(rule: AlertRule, alerts: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The alerts whose keys are new, or whose file is new to a rule that tells of each file once."""
    keys = ONCE_FOR_A_FILE if rule.first_time_only else list(PREDICTION_ALERTS.keys)
    alerts = alerts.sort_values("model_version", ascending=False).drop_duplicates(keys)
    found = alerts.merge(known[keys].drop_duplicates(), on=keys, how="left", indicator="seen")
    return found.loc[found["seen"] == "left_only"].drop(columns="seen")


def new_alerts(
    rules: AlertRules, predictions: Mapping[str, pd.DataFrame], known: pd.DataFrame, now: datetime
) -> pd.DataFrame:
    """Alerts for what meets a rule and is not known; `predictions` are given by stage, `known` are keys of alerts."""
    found: Iterable[pd.DataFrame] = (
        without_known(rule, meeting(rule, predictions[rule.stage]).assign(rule=rule.name, receiver=receiver), known)
        for rule in rules.rules
        for receiver in rule.send_to
    )
    return pd.concat([known.iloc[:0], *found]).assign(state=WAITING, attempts=0, matched_at=now)
