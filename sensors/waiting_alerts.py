"""Alerts wait to be sent → send_alerts."""

from datetime import UTC, datetime
from hashlib import sha256

import dagster as dg

from image_assets.predictions.alert_sending import due_alerts
from resources.delta.delta_tables import DeltaTables
from sensors.attempts import RequestKey, next_request, read_state

JOB_NAME = "send_alerts"
# The jobs that send alerts: while one of them runs, the sensor requests nothing.
JOB_NAMES = (JOB_NAME, "ingest_images", "predict_images", "replay_quarantine")


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Retries alerts that could not be sent.",
)
def waiting_alerts(context: dg.SensorEvaluationContext, delta_tables: DeltaTables) -> dg.SensorResult | dg.SkipReason:
    """Requests a run when alerts that failed, or that no run has sent yet, are due for another attempt."""
    due = due_alerts(delta_tables, datetime.now(UTC))
    state = read_state(context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=context.cursor)
    if not due:
        return dg.SensorResult(skip_reason="No alerts are due.", cursor=str(state.key.without_digest()))
    request = next_request(state, sha256(due.encode()).hexdigest())
    if isinstance(request, RequestKey):
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=str(request))], cursor=str(request))
    return dg.SkipReason(f"{due}. {request}")
