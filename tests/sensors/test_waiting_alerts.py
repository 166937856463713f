"""Alerts that wait lead to a run of send_alerts when it is time, without new predictions."""

import dagster as dg

from resources.thin_tables import ThinTables
from sensors.waiting_alerts import waiting_alerts
from tests.image_assets.predictions.alert_run import predict, run
from tests.receivers import Inbox

ROSES = "rules: [{name: sure roses, send_to: [oncall]}]"


@dg.op
def send() -> None:
    """Nothing."""


@dg.job
def send_alerts() -> None:
    send()


class Daemon:
    """What Dagster's daemon does with a sensor."""

    def __init__(self, thin_tables: ThinTables) -> None:
        self.instance, self.thin_tables, self.cursor = dg.DagsterInstance.ephemeral(), thin_tables, None

    def tick(self) -> str:
        """The run key that a tick asks for, or why it asks for none."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            sensor_name="waiting_alerts",
            resources={"thin_tables": self.thin_tables},
        )
        answer = waiting_alerts(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
            if answer.run_requests:
                return str(answer.run_requests[0].run_key)
        skip = answer.skip_reason if isinstance(answer, dg.SensorResult) else answer
        return str(skip.skip_message if isinstance(skip, dg.SkipReason) else skip)


def test_a_receiver_that_failed_is_tried_again_when_it_is_time(thin_tables: ThinTables, inbox: Inbox) -> None:
    daemon, oncall = Daemon(thin_tables), {"oncall": f"json://127.0.0.1:{inbox.port}"}
    assert daemon.tick() == "no alert waits to be sent now"
    inbox.answers = [500, 500]
    predict(thin_tables, ("a.jpg", "roses", 1))
    run(thin_tables, ROSES, oncall)  # long ago: it may be tried again
    keys = [daemon.tick()]
    run(thin_tables, ROSES, oncall, 1)
    keys += [daemon.tick()]
    assert [key.split(".")[1:] for key in keys] == [["1", "1"], ["2", "1"]], "each attempt is asked for once"
    run(thin_tables, ROSES, oncall, 3)
    assert daemon.tick() == "no alert waits to be sent now"
    assert len(inbox.accepted) == 1


def test_nothing_is_asked_for_while_another_run_sends(thin_tables: ThinTables) -> None:
    daemon = Daemon(thin_tables)
    predict(thin_tables, ("a.jpg", "roses", 1))
    run(thin_tables, ROSES, {"oncall": "json://127.0.0.1:9"})
    going = daemon.instance.create_run_for_job(send_alerts, status=dg.DagsterRunStatus.STARTED)
    assert f"waiting for run {going.run_id} to end" in daemon.tick()
    assert daemon.tick().startswith("alerts wait for oncall (1) since ")
    daemon.instance.report_run_failed(going)
    assert daemon.tick().endswith(".1.1")
