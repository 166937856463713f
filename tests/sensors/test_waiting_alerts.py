"""Alerts that are due lead to a run of send_alerts, without new predictions."""

import dagster as dg

from resources.delta.delta_tables import DeltaTables
from sensors.waiting_alerts import waiting_alerts
from tests.support.alert_run import predict, run
from tests.support.receivers import Inbox

ROSES = "rules: [{name: sure roses, send_to: [oncall]}]"


@dg.op
def send() -> None:
    """Nothing."""


@dg.job
def send_alerts() -> None:
    send()


class Daemon:
    """What Dagster's daemon does with a sensor."""

    def __init__(self, delta_tables: DeltaTables) -> None:
        self.instance, self.delta_tables, self.cursor = dg.DagsterInstance.ephemeral(), delta_tables, None

    def tick(self) -> str:
        """The run key that a tick requests, or why it requests none."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            sensor_name="waiting_alerts",
            resources={"delta_tables": self.delta_tables},
        ) as context:
            answer = waiting_alerts(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
            if answer.run_requests:
                return str(answer.run_requests[0].run_key)
        skip = answer.skip_reason if isinstance(answer, dg.SensorResult) else answer
        return str(skip.skip_message if isinstance(skip, dg.SkipReason) else skip)


def test_a_failed_receiver_is_retried_when_it_is_due(delta_tables: DeltaTables, inbox: Inbox) -> None:
    daemon, oncall = Daemon(delta_tables), {"oncall": f"json://127.0.0.1:{inbox.port}"}
    assert daemon.tick() == "No alerts are due."
    inbox.answers = [500, 500]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, oncall)  # long ago: it may be tried again
    keys = [daemon.tick()]
    run(delta_tables, ROSES, oncall, 1)
    keys += [daemon.tick()]
    assert [key.split(".")[1:] for key in keys] == [["1", "1"], ["2", "1"]], "each attempt is requested once"
    run(delta_tables, ROSES, oncall, 3)
    assert daemon.tick() == "No alerts are due."
    assert len(inbox.accepted) == 1


def test_nothing_is_requested_while_another_run_sends(delta_tables: DeltaTables) -> None:
    daemon = Daemon(delta_tables)
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, {"oncall": "json://127.0.0.1:9"})
    active = daemon.instance.create_run_for_job(send_alerts, status=dg.DagsterRunStatus.STARTED)
    assert f"Waiting for run {active.run_id} to finish" in daemon.tick()
    assert daemon.tick().startswith("alerts to oncall (1) waiting since ")
    daemon.instance.report_run_failed(active)
    assert daemon.tick().endswith(".1.1")
