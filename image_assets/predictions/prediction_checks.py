"""Checks of the predictions group: valid probabilities, complete predictions, sent alerts, no drift."""

from collections import Counter
from collections.abc import Iterator

import dagster as dg
import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import functions as F

from image_assets.data.image_files import IMAGE_KEYS, current_key_batches
from image_assets.data.table_checks import DUPLICATE_KEYS_REMEDY
from image_assets.data.table_checks import keys_unique as keys_unique_in
from image_assets.models.scoring import SUM_TOLERANCE
from image_assets.models.version_ids import of_versions, registry_warning
from image_assets.predictions.alert_sending import UNCLEAR, UNSENT, read_alerts
from image_assets.predictions.prediction_drift import MIN_DAYS, MIN_IMAGES_PER_DAY, jumps, read_days
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_PREDICTIONS, PREDICTION_ALERTS
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import rows_run_locally
from resources.delta.queries import count, missing_keys, repeated_keys
from resources.delta.unchanged import table_check
from resources.mlflow.model_registry import ModelRegistry

PROBABILITIES_REMEDY = "promote another version, archive the one that returns invalid probabilities, and train again"
MISSING_PREDICTIONS_REMEDY = (
    "materialize image_predictions and current_predictions; if no version is in production, promote one"
)
REGISTRY_REMEDY = "correct MLFLOW_TRACKING_URI, or restore the registry; predictions of its versions are kept"
alert_keys_unique = keys_unique_in(PREDICTION_ALERTS)


@table_check(
    asset="image_predictions",
    reads=[IMAGE_PREDICTIONS],
    description=f"Each image has one row per model version. If it fails: {DUPLICATE_KEYS_REMEDY}.",
)
def keys_unique(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Counts keys that more than one row has."""
    if rows_run_locally(delta_tables.pyspark, delta_tables.snapshot(IMAGE_PREDICTIONS).rows):
        repeated = repeated_keys(delta_tables, IMAGE_PREDICTIONS).count
    else:
        keys = delta_tables.dataframe(IMAGE_PREDICTIONS).groupBy(*IMAGE_PREDICTIONS.keys)
        repeated = keys.count().where("count > 1").count()
    return dg.AssetCheckResult(
        passed=repeated == 0,
        metadata={"repeated_keys": repeated},
        description=f"{repeated:,} keys occur in more than one row: {DUPLICATE_KEYS_REMEDY}" if repeated else None,
    )


@table_check(
    asset="image_predictions",
    reads=[IMAGE_PREDICTIONS],
    description=f"The probabilities of each prediction sum to one. If it fails: {PROBABILITIES_REMEDY}.",
)
def probabilities_sum_to_one(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Counts predictions whose probabilities do not sum to one."""
    if rows_run_locally(delta_tables.pyspark, delta_tables.snapshot(IMAGE_PREDICTIONS).rows):
        answered = delta_tables.batches(IMAGE_PREDICTIONS, ["probabilities"], pc.field("probability").is_valid())
        is_right = f"abs(coalesce(list_sum(probabilities), 0) - 1) <= {SUM_TOLERANCE}"  # NaN is wrong, too
        wrong = count(f"FROM answered WHERE probabilities IS NOT NULL AND NOT {is_right}", answered=answered)
    else:
        total = F.aggregate("probabilities", F.lit(0.0), lambda sum_, each: sum_ + each.cast("double"))
        answered = delta_tables.dataframe(IMAGE_PREDICTIONS).where("probability IS NOT NULL")
        wrong = answered.where(F.isnan(total) | (F.abs(total - 1) > SUM_TOLERANCE)).count()
    return dg.AssetCheckResult(
        passed=wrong == 0,
        metadata={"predictions_off": wrong},
        description=f"{wrong:,} predictions whose probabilities do not sum to one: {PROBABILITIES_REMEDY}"
        if wrong
        else None,
    )


@dg.asset_check(
    asset="image_predictions",
    description=f"The registry is the one that earlier predictions are from. If it fails: {REGISTRY_REMEDY}.",
)
def same_registry(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.AssetCheckResult:
    """Warns if the registry lacks the versions that made predictions, or reuses their numbers."""
    versions = model_registry.versions()
    warning = registry_warning(delta_tables, IMAGE_PREDICTIONS, versions, model_registry)
    return dg.AssetCheckResult(
        passed=warning is None,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"versions": len(versions)},
        description=warning,
    )


@dg.asset_check(
    asset="current_predictions",
    description="Every current file has a prediction by the production version. "
    f"If it fails: {MISSING_PREDICTIONS_REMEDY}.",
)
def every_file_predicted(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.AssetCheckResult:
    """Counts current files without a prediction by the production version."""
    serving = model_registry.serving()
    of_serving = of_versions([serving] if serving else [])
    predicted = delta_tables.batches(CURRENT_PREDICTIONS, IMAGE_KEYS, of_serving)
    missing = missing_keys(current_key_batches(delta_tables), predicted, IMAGE_KEYS).count
    return dg.AssetCheckResult(
        passed=missing == 0,
        metadata={"files_without_prediction": missing, "serving_version": str(serving.version) if serving else "none"},
        description=None if missing == 0 else f"{missing:,} files have no prediction: {MISSING_PREDICTIONS_REMEDY}",
    )


def what_to_do(alerts: pd.DataFrame) -> Iterator[str]:
    """For each receiver or message, why its alerts were not sent, and what to do about it."""
    unclear = alerts["state"] == UNCLEAR
    for message_id, together in alerts.loc[unclear].groupby("message_id"):
        alert = together.iloc[0]
        yield (
            f"unclear alerts to {alert['receiver']} ({len(together)}): {alert['note']}. Check there for message_id "
            f"{message_id}, then materialize prediction_alerts with `arrived: [{message_id}]` or "
            f"`not_arrived: [{message_id}]`"
        )
    for receiver, together in alerts.loc[~unclear].groupby("receiver"):
        notes, times = together["note"].dropna(), together["next_attempt_at"].dropna()
        why = f": {notes.iloc[0]}" if len(notes) else ""
        when = f" after {times.max():%Y-%m-%d %H:%M} UTC" if len(times) else ""
        yield (
            f"waiting alerts to {receiver} ({len(together)}){why}. A later run sends them{when}; if it should not, "
            f"materialize prediction_alerts with `dropped: [{receiver}]`"
        )


@dg.asset_check(
    asset="prediction_alerts",
    description="Every alert was sent and accepted by its receiver. If it fails: read its message, which names the "
    "receivers and the reasons; later runs send waiting alerts; settle unclear ones with the job `send_alerts`.",
)
def every_alert_sent(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Lists alerts that are waiting, or of which it is unclear whether they arrived."""
    alerts = read_alerts(delta_tables)
    counts = Counter(alerts["state"])
    return dg.AssetCheckResult(
        passed=alerts.empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={f"alerts_{state}": counts[state] for state in UNSENT},
        description="; ".join(what_to_do(alerts)) or None,
    )


@dg.asset_check(
    asset="prediction_drift",
    description="The newest day resembles the days before. If it fails: check that day's images in the gallery; then "
    "fix their source, or label some of them and launch `train_models`.",
)
def drift_is_small(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.AssetCheckResult:
    """Lists the metrics of the production version that jumped on the newest day."""
    serving = model_registry.serving()
    found = jumps(read_days(delta_tables, serving)) if serving else None
    too_little = (
        f"Too few days to compare: a version needs {MIN_DAYS + 1} days with {MIN_IMAGES_PER_DAY} predictions each."
    )
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"serving_version": str(serving.version) if serving else "none", "jumps": len(found or [])},
        description=too_little if found is None else "; ".join(found) or None,
    )
