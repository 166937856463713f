"""Predictions that met a user's rule, and that they were sent, once."""

from collections import Counter
from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from image_assets.predictions.alert_matches import new_alerts, predictions_in
from image_assets.predictions.alert_rules import AlertRules, to_rules
from image_assets.predictions.alert_sending import send_waiting, to_receivers
from image_assets.predictions.alert_states import (
    UNCLEAR,
    WAITING,
    read_alerts,
    record,
    settle_interrupted,
    settle_unclear,
)
from image_assets.schemas import PREDICTION_ALERTS
from resources.alert_sender import AlertSender
from resources.model_registry import ModelRegistry
from resources.rules_file import RulesFile
from resources.table_metadata import table_metadata
from resources.thin_tables import ThinTables

SHOWN = 10
SHOWN_COLUMNS = ["rule", "receiver", "label", "probability", "model_version", "path", "state", "note", "message_id"]


class AlertsConfig(dg.Config):
    """What a person found out about unclear messages."""

    arrived: list[str] = Field(default=[], description="Their message_ids, where they arrived; `*` for all others.")
    not_arrived: list[str] = Field(
        default=[], description="Where they did not: these are sent again; `*` for all others."
    )


def record_new(thin_tables: ThinTables, rules: AlertRules, model_registry: ModelRegistry, now: datetime) -> int:
    """Record the predictions that meet a rule and did not before, as alerts that wait; how many they are."""
    stages = {rule.stage for rule in rules.rules}
    predictions = {stage: predictions_in(stage, thin_tables, model_registry) for stage in stages}
    known = thin_tables.read(PREDICTION_ALERTS, PREDICTION_ALERTS.keys).to_pandas()
    return len(record(thin_tables, new_alerts(rules, predictions, known, now)))


def tell(
    thin_tables: ThinTables,
    rules: AlertRules,
    alert_sender: AlertSender,
    model_registry: ModelRegistry,
    now: datetime,
) -> dict[str, int]:
    """Record what meets a rule, and send what waits; how many alerts are new, were sent, wait and are unclear."""
    receivers = to_receivers(rules, alert_sender)  # before anything is written: a wrong address is a wrong set-up
    settle_interrupted(thin_tables, [name for name in rules.receiver_names if rules.deduplicates(name)])
    new = record_new(thin_tables, rules, model_registry, now)
    sent = send_waiting(thin_tables, alert_sender, receivers, rules, now)
    left = Counter(read_alerts(thin_tables)["state"])
    return {"alerts_new": new, "alerts_sent": sent, "alerts_waiting": left[WAITING], "alerts_unclear": left[UNCLEAR]}


def newest(thin_tables: ThinTables) -> dg.TableMetadataValue:
    """The newest alerts, for the UI."""
    alerts = thin_tables.read(PREDICTION_ALERTS, ["matched_at", *SHOWN_COLUMNS]).to_pandas(timestamp_as_object=True)
    shown = alerts.sort_values("matched_at", ascending=False)[SHOWN_COLUMNS].head(SHOWN).fillna("").astype(str)
    return dg.MetadataValue.table(
        [dg.TableRecord(row) for row in shown.to_dict("records")],
        schema=dg.TableSchema([dg.TableColumn(name) for name in SHOWN_COLUMNS]),
    )


@dg.asset(
    deps=["current_predictions", "image_predictions", "image_files"], kinds={"deltalake"}, pool="prediction_alerts"
)
def prediction_alerts(
    config: AlertsConfig,
    thin_tables: ThinTables,
    rules_file: RulesFile,
    alert_sender: AlertSender,
    model_registry: ModelRegistry,
) -> dg.MaterializeResult:
    """Predictions that met a user's rule, and that they were sent to each receiver, once."""
    rules = to_rules(rules_file.text(), rules_file.path)
    before = thin_tables.snapshot(PREDICTION_ALERTS)
    settle_unclear(thin_tables, config.arrived, config.not_arrived)
    counts = tell(thin_tables, rules, alert_sender, model_registry, datetime.now(UTC))
    thin_tables.compact(PREDICTION_ALERTS)
    after = thin_tables.snapshot(PREDICTION_ALERTS)
    hint = {} if rules.rules else {"remedy": f"write rules into {rules_file.path}; docs/alerts.md says how"}
    return dg.MaterializeResult(
        metadata={
            "rows_added": after.rows - before.rows,
            **table_metadata(PREDICTION_ALERTS, thin_tables.uri(PREDICTION_ALERTS), after),
            "rules": len(rules.rules),
            **counts,
            "newest": newest(thin_tables),
            **hint,
        }
    )
