"""Predictions that match an alert rule, and the messages that report them exactly once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import dagster as dg
import pandas as pd
import pyarrow.compute as pc
from pydantic import Field

from image_assets.data.image_files import current_keys
from image_assets.models.version_ids import identify_rows, of_versions, unidentified
from image_assets.predictions.alert_rules import AlertRule, AlertRules, to_rules
from image_assets.predictions.alert_sending import (
    UNCLEAR,
    WAITING,
    drop_waiting,
    merge_alerts,
    read_alerts,
    send_waiting,
    settle_interrupted,
    settle_unclear,
    to_receivers,
)
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_PREDICTIONS, PREDICTION_ALERTS
from resources.alerts import AlertSender, RulesFile
from resources.delta.delta_log import table_metadata
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import SERVING_STAGE, SHADOW_STAGE, ModelRegistry, RegistryUnavailable, shadows

PREDICTION_COLUMNS = ["path", "image_id", "model_name", "model_version", "version_id", "label", "probability"]
PREDICTION_COLUMNS += ["predicted_at", "abstained"]
ONCE_FOR_A_FILE = ["path", "rule", "receiver"]
LISTED_ALERTS = 10
SHOWN_COLUMNS = ["rule", "receiver", "label", "probability", "model_version", "path", "state", "note", "message_id"]


def predictions_in(stage: str, delta_tables: DeltaTables, model_registry: ModelRegistry) -> pd.DataFrame:
    """The predictions for current files by the model versions in a stage.

    For Production these are current_predictions. Versions in other stages have predictions from when they were in
    Staging or Production; alerts do not make them predict more images.
    """
    if stage == SERVING_STAGE:
        of_model = pc.field("model_name") == model_registry.name
        return delta_tables.read(CURRENT_PREDICTIONS, PREDICTION_COLUMNS, of_model).to_pandas(timestamp_as_object=True)
    versions = model_registry.versions()
    in_stage = shadows(versions) if stage == SHADOW_STAGE else [one for one in versions if one.stage == stage]
    rows = of_versions(in_stage)
    predictions = delta_tables.read(IMAGE_PREDICTIONS, PREDICTION_COLUMNS, rows).to_pandas(timestamp_as_object=True)
    return predictions.merge(current_keys(delta_tables))


def matching_predictions(rule: AlertRule, predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions that match the rule.

    Where the version abstained, they match rules for all labels with a maximum probability, which look for
    predictions with low confidence; other images without a predicted label match no rule.
    """
    meets = predictions["label"].notna()
    if rule.labels is None and rule.maximum_probability is not None:
        meets |= predictions["abstained"].eq(True)
    if rule.labels is not None:
        meets &= predictions["label"].isin(rule.labels)
    # Compared as float32, the type of the column: a stored 0.9 is not below a bound of 0.9.
    if rule.minimum_probability is not None:
        meets &= predictions["probability"] >= rule.minimum_probability
    if rule.maximum_probability is not None:
        meets &= predictions["probability"] <= rule.maximum_probability
    return predictions.loc[meets].drop(columns="abstained")


def without_recorded(rule: AlertRule, alerts: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The alerts with new keys; for rules with `first_time_only`, those for new files."""
    keys = ONCE_FOR_A_FILE if rule.first_time_only else list(PREDICTION_ALERTS.keys)
    alerts = alerts.sort_values("model_version", ascending=False).drop_duplicates(keys)
    found = alerts.merge(recorded[keys].drop_duplicates(), on=keys, how="left", indicator="seen")
    return found.loc[found["seen"] == "left_only"].drop(columns="seen")


def new_alerts(
    rules: AlertRules, predictions: Mapping[str, pd.DataFrame], recorded: pd.DataFrame, now: datetime
) -> pd.DataFrame:
    """New alerts for predictions, given by stage, that match a rule; `recorded` holds the keys of existing alerts."""
    found: Iterable[pd.DataFrame] = (
        without_recorded(
            rule,
            matching_predictions(rule, predictions[rule.stage]).assign(rule=rule.name, receiver=receiver),
            recorded,
        )
        for rule in rules.rules
        for receiver in rule.send_to
    )
    return pd.concat([recorded.iloc[:0], *found]).assign(state=WAITING, attempts=0, matched_at=now)


class AlertsConfig(dg.Config):
    """Whether unclear messages arrived, and which alerts are not sent any more."""

    arrived: list[str] = Field(default=[], description="The message_ids of those that arrived; `*` for all others.")
    not_arrived: list[str] = Field(
        default=[], description="The message_ids of those that did not, which are sent again; `*` for all others."
    )
    dropped: list[str] = Field(
        default=[], description="Receivers, or message_ids, whose waiting alerts are not sent any more."
    )


def record_new(delta_tables: DeltaTables, rules: AlertRules, model_registry: ModelRegistry, now: datetime) -> int:
    """Records new matches of the rules as waiting alerts, and returns their number."""
    stages = {rule.stage for rule in rules.rules}
    tables = (IMAGE_PREDICTIONS, CURRENT_PREDICTIONS, PREDICTION_ALERTS)
    with suppress(RegistryUnavailable):  # alerts do not wait for the registry
        if stages and unidentified(delta_tables, *tables):
            identify_rows(delta_tables, model_registry.versions(), *tables)
    predictions = {stage: predictions_in(stage, delta_tables, model_registry) for stage in stages}
    recorded = delta_tables.read(PREDICTION_ALERTS, PREDICTION_ALERTS.keys).to_pandas()
    return len(merge_alerts(delta_tables, new_alerts(rules, predictions, recorded, now)))


def record_and_send(
    delta_tables: DeltaTables,
    rules: AlertRules,
    alert_sender: AlertSender,
    model_registry: ModelRegistry,
    now: datetime,
) -> dict[str, int]:
    """Records new alerts and sends waiting ones; returns the numbers of new, sent, waiting and unclear alerts."""
    receivers = to_receivers(rules, alert_sender)  # first, so that a wrong address fails before anything is written
    settle_interrupted(delta_tables, [name for name in rules.receiver_names if rules.deduplicates(name)])
    new = record_new(delta_tables, rules, model_registry, now)
    sent = send_waiting(delta_tables, alert_sender, receivers, rules, now)
    left = Counter(read_alerts(delta_tables)["state"])
    return {"alerts_new": new, "alerts_sent": sent, "alerts_waiting": left[WAITING], "alerts_unclear": left[UNCLEAR]}


def newest_alerts(delta_tables: DeltaTables) -> dg.TableMetadataValue:
    """The newest alerts, as metadata."""
    alerts = delta_tables.read(PREDICTION_ALERTS, ["matched_at", *SHOWN_COLUMNS]).to_pandas(timestamp_as_object=True)
    shown = alerts.sort_values("matched_at", ascending=False)[SHOWN_COLUMNS].head(LISTED_ALERTS).fillna("").astype(str)
    return dg.MetadataValue.table(
        [dg.TableRecord(row) for row in shown.to_dict("records")],
        schema=dg.TableSchema([dg.TableColumn(name) for name in SHOWN_COLUMNS]),
    )


@dg.asset(
    deps=["current_predictions", "image_predictions", "image_files"], kinds={"deltalake"}, pool="prediction_alerts"
)
def prediction_alerts(
    config: AlertsConfig,
    delta_tables: DeltaTables,
    rules_file: RulesFile,
    alert_sender: AlertSender,
    model_registry: ModelRegistry,
) -> dg.MaterializeResult:
    """Predictions that match an alert rule, one row per receiver, with the state of their message."""
    rules = to_rules(rules_file.text(), rules_file.path)
    before = delta_tables.snapshot(PREDICTION_ALERTS)
    settle_unclear(delta_tables, config.arrived, config.not_arrived)
    drop_waiting(delta_tables, config.dropped)
    counts = record_and_send(delta_tables, rules, alert_sender, model_registry, datetime.now(UTC))
    delta_tables.compact_without_spark(PREDICTION_ALERTS)
    after = delta_tables.snapshot(PREDICTION_ALERTS)
    hint = {} if rules.rules else {"remedy": f"Write rules to {rules_file.path} (see docs/alerts.md)."}
    return dg.MaterializeResult(
        metadata={
            "rows_added": after.rows - before.rows,
            **table_metadata(PREDICTION_ALERTS, delta_tables.uri(PREDICTION_ALERTS), after),
            "rules": len(rules.rules),
            **counts,
            "newest": newest_alerts(delta_tables),
            **hint,
        }
    )
