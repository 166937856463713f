"""Alerts wait to be sent → send_alerts."""

from datetime import UTC, datetime
from hashlib import sha256

import dagster as dg

from image_assets.predictions.alert_states import due
from resources.thin_tables import ThinTables
from sensors.attempts import Asked, next_request, to_known

JOB_NAME = "send_alerts"
# What else sends them: while one of these goes on, nothing is asked for.
JOB_NAMES = (JOB_NAME, "ingest_images", "predict_images", "replay_quarantine")


@dg.sensor(
    job_name=JOB_NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An alert could not be sent: try again.",
)
def waiting_alerts(context: dg.SensorEvaluationContext, thin_tables: ThinTables) -> dg.SensorResult | dg.SkipReason:
    """Send alerts that a receiver did not take, or a run did not come to, when it is time to try again."""
    said = due(thin_tables, datetime.now(UTC))
    known = to_known(context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=context.cursor)
    if not said:
        return dg.SensorResult(skip_reason="no alert waits to be sent now", cursor=str(known.asked.forgotten()))
    request = next_request(known, sha256(said.encode()).hexdigest())
    if isinstance(request, Asked):
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=str(request))], cursor=str(request))
    return dg.SkipReason(f"{said}; {request}")
