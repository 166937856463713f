"""Alerts arrive once: over runs, through receivers that fail and runs that are killed."""

import logging
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from image_assets.predictions.alert_sending import drop_waiting, due_alerts, settle_unclear
from image_assets.predictions.prediction_alerts import prediction_alerts
from image_assets.predictions.prediction_checks import every_alert_sent
from resources.alerts import AlertSender, RulesFile
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry
from tests.support.alert_run import NOON, alerts, predict, run, start, watched
from tests.support.receivers import DROP, HANG, SECRET, Inbox, webhook

ROSES = "rules: [{name: sure roses, labels: [roses], minimum_probability: 0.9, send_to: [oncall]}]"
KNOWS_IDS = f"{ROSES}\nreceivers: {{oncall: {{deduplicates: true}}}}"
NOTHING = {"alerts_new": 0, "alerts_sent": 0, "alerts_waiting": 0, "alerts_unclear": 0}
BEFORE_IT_TOOK_IT, AFTER_IT_TOOK_IT = "before the receiver took it", "after the receiver took it"
DOUBTFUL = ("after claimed", BEFORE_IT_TOOK_IT, AFTER_IT_TOOK_IT, "before sent")


def address(inbox: Inbox) -> dict[str, str]:
    return {"oncall": f"json://127.0.0.1:{inbox.port}/{SECRET}?rto=0.3"}


def counts(results: dict[str, int]) -> tuple[int, ...]:
    """How many are new, were sent, wait, are unclear."""
    return tuple(results.values())


def test_an_alert_is_told_once_over_many_runs(delta_tables: DeltaTables, inbox: Inbox) -> None:
    predict(
        delta_tables, ("a.jpg", "roses", 0.9), ("b.jpg", "roses", 0.8), ("c.jpg", "tulips", 1), ("d.jpg", None, None)
    )
    results = [run(delta_tables, ROSES, address(inbox), minutes) for minutes in range(3)]
    assert counts(results[0]) == (1, 1, 0, 0)
    assert results[1:] == [NOTHING, NOTHING]
    (message,) = inbox.accepted
    assert message["title"] == "sure roses: 1 prediction"
    ((path, state, message_id),) = alerts(delta_tables, "path", "state", "message_id")
    assert (path, state, message["id"]) == ("a.jpg", "sent", message_id)
    assert message["message"] == f"roses 90.0%, version 1, a.jpg\nmessage_id {message_id}"


def test_each_receiver_of_a_rule_is_told_and_one_that_fails_stops_no_other(
    delta_tables: DeltaTables, inbox: Inbox
) -> None:
    rules = ROSES.replace("[oncall]", "[broken, oncall, team]")
    predict(delta_tables, ("a.jpg", "roses", 1), ("b.jpg", "roses", 1))
    with webhook() as broken, webhook() as team:
        broken.answers = [500]
        hooks = {"broken": broken, "oncall": inbox, "team": team}
        addresses = {name: address(hook)["oncall"] for name, hook in hooks.items()}
        assert counts(run(delta_tables, rules, addresses)) == (6, 4, 2, 0)
        assert [len(hook.accepted) for hook in (broken, inbox, team)] == [0, 1, 1]
        assert counts(run(delta_tables, rules, addresses, 1)) == (0, 2, 0, 0)
        assert len(broken.accepted) == 1


@pytest.mark.parametrize("rules", [ROSES, KNOWS_IDS])
def test_a_receiver_that_answers_with_an_error_gets_the_same_message_later_and_accepts_it_once(
    delta_tables: DeltaTables, inbox: Inbox, rules: str
) -> None:
    inbox.answers = [500, 500]
    predict(delta_tables, ("a.jpg", "roses", 1))
    assert counts(run(delta_tables, rules, address(inbox))) == (1, 0, 1, 0)
    predict(delta_tables, ("b.jpg", "roses", 1))
    assert counts(run(delta_tables, rules, address(inbox), 0.9)) == (1, 0, 2, 0), "it is left alone for a minute"
    assert len(inbox.messages) == 1
    assert counts(run(delta_tables, rules, address(inbox), 1)) == (0, 0, 2, 0)
    assert counts(run(delta_tables, rules, address(inbox), 2.9)) == (0, 0, 2, 0), "then for two"
    assert len(inbox.messages) == 2
    assert counts(run(delta_tables, rules, address(inbox), 3)) == (0, 2, 0, 0)
    first, second, third, fourth = inbox.messages
    assert [message["answer"] for message in inbox.messages] == [500, 500, 200, 200]
    assert {(message["id"], message["message"]) for message in (first, second)} == {(third["id"], third["message"])}
    assert fourth["message"].startswith("roses 100.0%, version 1, b.jpg\n"), "what came meanwhile is told together"
    assert alerts(delta_tables, "path", "attempts", "note") == [("a.jpg", 3, None), ("b.jpg", 1, None)]


def test_alerts_wait_for_a_receiver_that_is_down(delta_tables: DeltaTables) -> None:
    with webhook() as gone:
        down = address(gone)
    predict(delta_tables, ("a.jpg", "roses", 1))
    for minutes in (0, 0.5, 1, 2, 3, 7, 15, 31, 62, 63, 100):
        run(delta_tables, ROSES, down, minutes)
    ((attempts, note),) = alerts(delta_tables, "attempts", "note")
    assert (attempts, note) == (7, "no connection to the receiver")
    with webhook() as back:
        assert counts(run(delta_tables, ROSES, address(back), 122)) == (0, 0, 1, 0), "an hour has not gone by"
        assert counts(run(delta_tables, ROSES, address(back), 123)) == (0, 1, 0, 0)
        assert len(back.accepted) == 1


def test_a_message_that_is_refused_for_good_keeps_no_other_one_waiting_until_it_is_dropped(
    delta_tables: DeltaTables, inbox: Inbox
) -> None:
    inbox.answers = [400, 400, 200]
    predict(delta_tables, ("a.jpg", "roses", 1))
    assert counts(run(delta_tables, ROSES, address(inbox))) == (1, 0, 1, 0)
    predict(delta_tables, ("b.jpg", "roses", 1))
    assert counts(run(delta_tables, ROSES, address(inbox), 1)) == (1, 1, 1, 0)
    assert "b.jpg" in inbox.texts()
    drop_waiting(delta_tables, [inbox.messages[0]["id"]])
    assert alerts(delta_tables, "path", "state") == [("a.jpg", "dropped"), ("b.jpg", "sent")]
    assert run(delta_tables, ROSES, address(inbox), 100) == NOTHING
    answer = every_alert_sent(delta_tables)
    assert isinstance(answer, dg.AssetCheckResult)
    assert answer.passed


def test_alerts_to_a_receiver_that_is_gone_are_dropped_by_its_name(delta_tables: DeltaTables, inbox: Inbox) -> None:
    inbox.answers = [500]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, address(inbox))
    with pytest.raises(ValueError, match="no alert is waiting for team: expected receivers or message_ids"):
        drop_waiting(delta_tables, ["oncall", "team"])
    answer = every_alert_sent(delta_tables)
    assert isinstance(answer, dg.AssetCheckResult)
    assert "`dropped: [oncall]`" in str(answer.description)
    drop_waiting(delta_tables, ["oncall"])
    assert alerts(delta_tables, "state") == ["dropped"]


@pytest.mark.parametrize("silence", [DROP, HANG])
def test_silence_leads_to_the_same_message_where_the_receiver_knows_ids(
    delta_tables: DeltaTables, inbox: Inbox, silence: str
) -> None:
    inbox.answers = [silence]
    predict(delta_tables, ("a.jpg", "roses", 1))
    assert counts(run(delta_tables, KNOWS_IDS, address(inbox))) == (1, 0, 1, 0)
    assert counts(run(delta_tables, KNOWS_IDS, address(inbox), 1)) == (0, 1, 0, 0)
    first, second = inbox.messages
    assert (first["id"], first["message"]) == (second["id"], second["message"])


@pytest.mark.parametrize("silence", [DROP, HANG])
def test_silence_is_unclear_where_it_does_not_and_a_person_decides(
    delta_tables: DeltaTables, inbox: Inbox, silence: str
) -> None:
    inbox.answers = [silence, silence]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, address(inbox))
    predict(delta_tables, ("b.jpg", "roses", 1))
    assert counts(run(delta_tables, ROSES, address(inbox), 14)) == (1, 0, 1, 1), "it is left alone for 15 minutes"
    assert counts(run(delta_tables, ROSES, address(inbox), 15)) == (0, 0, 0, 2)
    assert counts(run(delta_tables, ROSES, address(inbox), 10_000)) == (0, 0, 0, 2)
    first, second = (message["id"] for message in inbox.messages)
    settle_unclear(delta_tables, arrived=[first], not_arrived=[second])
    assert counts(run(delta_tables, ROSES, address(inbox), 10_001)) == (0, 1, 0, 0)
    assert [message["id"] for message in inbox.accepted] == [second]
    assert alerts(delta_tables, "path", "state") == [("a.jpg", "sent"), ("b.jpg", "sent")]


def test_a_persons_word_is_about_messages_that_are_there(delta_tables: DeltaTables, inbox: Inbox) -> None:
    inbox.answers = [DROP]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, address(inbox))
    with pytest.raises(ValueError, match=r"there is no message 7: expected message_ids of prediction_alerts, or \*"):
        settle_unclear(delta_tables, ["7"], [])
    with pytest.raises(ValueError, match=r"\* is in both `arrived` and `not_arrived`"):
        settle_unclear(delta_tables, ["*"], ["*"])
    settle_unclear(delta_tables, ["*"], [])
    settle_unclear(delta_tables, [], [inbox.messages[0]["id"]])
    assert alerts(delta_tables, "state") == ["sent"], "and sent once"


@pytest.mark.parametrize(("arrived", "not_arrived"), [("first", "*"), ("*", "second"), ("first", "second")])
def test_what_a_person_names_is_not_among_the_others(
    delta_tables: DeltaTables, inbox: Inbox, arrived: str, not_arrived: str
) -> None:
    inbox.answers = [DROP, DROP]
    for minutes, path in ((0, "a.jpg"), (15, "b.jpg")):
        predict(delta_tables, (path, "roses", 1))
        run(delta_tables, ROSES, address(inbox), minutes)
    ids = {"*": "*", "first": inbox.messages[0]["id"], "second": inbox.messages[1]["id"]}
    settle_unclear(delta_tables, [ids[arrived]], [ids[not_arrived]])
    assert alerts(delta_tables, "path", "state") == [("a.jpg", "sent"), ("b.jpg", "waiting")]


def killed(point: str, delta_tables: DeltaTables, inbox: Inbox, rules: str) -> None:
    """A first run that is killed at the point."""
    runs: list[BaseProcess] = []
    if point in (BEFORE_IT_TOOK_IT, AFTER_IT_TOOK_IT):
        inbox.answers = [DROP] if point == BEFORE_IT_TOOK_IT else [200]
        inbox.before_answer = lambda: os.kill(runs[0].pid or 0, signal.SIGKILL)
    runs.append(start(delta_tables.root, point, rules, address(inbox)))
    runs[0].join(60)
    assert runs[0].exitcode == -signal.SIGKILL
    inbox.before_answer = lambda: None


@pytest.mark.parametrize("point", DOUBTFUL)
def test_after_a_kill_that_leaves_a_doubt_a_receiver_that_knows_ids_has_each_message_once(
    delta_tables: DeltaTables, inbox: Inbox, point: str
) -> None:
    predict(delta_tables, ("a.jpg", "roses", 1))
    killed(point, delta_tables, inbox, KNOWS_IDS)
    for minutes in range(2):
        run(delta_tables, KNOWS_IDS, address(inbox), minutes)
    assert alerts(delta_tables, "state") == ["sent"]
    assert len({message["id"] for message in inbox.accepted}) == 1
    assert len({message["message"] for message in inbox.messages}) == 1, "what comes again is the very same"
    came = {"before sent": 2, AFTER_IT_TOOK_IT: 2}
    assert len(inbox.accepted) == came.get(point, 1)


@pytest.mark.parametrize("point", ["before recorded", "after recorded", "before claimed", "after sent"])
def test_after_a_kill_that_leaves_no_doubt_any_receiver_has_each_message_once(
    delta_tables: DeltaTables, inbox: Inbox, point: str
) -> None:
    predict(delta_tables, ("a.jpg", "roses", 1))
    killed(point, delta_tables, inbox, ROSES)
    for minutes in range(2):
        run(delta_tables, ROSES, address(inbox), minutes)
    assert alerts(delta_tables, "state") == ["sent"]
    assert len(inbox.messages) == 1


@pytest.mark.parametrize("point", DOUBTFUL)
def test_after_a_kill_that_leaves_a_doubt_nothing_is_repeated_and_nothing_lost(
    delta_tables: DeltaTables, inbox: Inbox, point: str
) -> None:
    predict(delta_tables, ("a.jpg", "roses", 1))
    killed(point, delta_tables, inbox, ROSES)
    arrived = point in (AFTER_IT_TOOK_IT, "before sent")
    predict(delta_tables, ("b.jpg", "roses", 1))
    assert counts(run(delta_tables, ROSES, address(inbox))) == (1, 1, 0, 1), "others go on"
    assert counts(run(delta_tables, ROSES, address(inbox), 100)) == (0, 0, 0, 1)
    assert len(inbox.accepted) == arrived + 1, "not repeated"
    answer = every_alert_sent(delta_tables)
    assert isinstance(answer, dg.AssetCheckResult)
    assert not answer.passed
    assert "unclear alerts to oncall (1): a run ended while it sent the message" in str(answer.description)
    settle_unclear(delta_tables, *([["*"], []] if arrived else [[], ["*"]]))
    run(delta_tables, ROSES, address(inbox), 100)
    assert len(inbox.accepted) == 2, "not lost"
    assert inbox.texts().count("a.jpg") == inbox.texts().count("b.jpg") == 1
    assert every_alert_sent(delta_tables).passed


@pytest.mark.parametrize("rules", [ROSES, KNOWS_IDS])
@pytest.mark.parametrize("answer", [200, 500, DROP])
def test_a_run_that_was_declared_over_and_goes_on_sends_nothing_that_another_one_sent(
    delta_tables: DeltaTables, inbox: Inbox, answer: int | str, rules: str
) -> None:
    inbox.answers = [answer]
    predict(delta_tables, ("a.jpg", "roses", 1))
    other = {"before claimed": lambda: run(delta_tables, rules, address(inbox))}
    slow = watched(delta_tables.root, lambda point: other.pop(point, lambda: None)())
    assert run(slow, rules, address(inbox))["alerts_sent"] == 0
    (message,) = inbox.messages
    assert alerts(delta_tables, "message_id", "attempts") == [(message["id"], 1)]


def test_alerts_of_a_rule_that_is_gone_are_still_sent_and_wait_for_an_address(
    delta_tables: DeltaTables, inbox: Inbox
) -> None:
    inbox.answers = [500]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, address(inbox))
    assert counts(run(delta_tables, "", {}, 1)) == (0, 0, 1, 0)
    assert "IMAGE_ASSETS_ALERT_ONCALL is not set" in alerts(delta_tables, "note")[0]
    assert counts(run(delta_tables, "", address(inbox), 60)) == (0, 0, 1, 0)
    assert counts(run(delta_tables, "", address(inbox), 61)) == (0, 1, 0, 0)


@pytest.mark.parametrize(
    ("rules", "addresses", "message"),
    [
        (ROSES, {}, "IMAGE_ASSETS_ALERT_ONCALL is not set"),
        (
            KNOWS_IDS,
            {"oncall": f"mailto://a:{SECRET}@a.example"},
            "oncall has `deduplicates`, .* use a webhook",
        ),
        ("rules: [{name: sure roses}]", {}, "rule sure roses: send_to: is missing"),
    ],
)
def test_a_wrong_set_up_is_told_before_anything_is_written(
    delta_tables: DeltaTables, rules: str, addresses: dict[str, str], message: str
) -> None:
    predict(delta_tables, ("a.jpg", "roses", 1))
    with pytest.raises(ValueError, match=message):
        run(delta_tables, rules, addresses)
    assert alerts(delta_tables, "path") == []


def test_what_is_due_is_told_in_other_words_after_each_attempt(delta_tables: DeltaTables, inbox: Inbox) -> None:
    assert due_alerts(delta_tables, NOON) == ""
    inbox.answers = [500, DROP]
    predict(delta_tables, ("a.jpg", "roses", 1))
    run(delta_tables, ROSES, address(inbox))
    assert due_alerts(delta_tables, NOON.replace(second=59)) == ""
    assert (
        due_alerts(delta_tables, NOON.replace(minute=1))
        == "alerts to oncall (1) waiting since 2020-06-01T12:01:00+00:00"
    )
    run(delta_tables, ROSES, address(inbox), 1)
    assert due_alerts(delta_tables, NOON.replace(hour=20)) == "", "a person decides"


def test_what_a_killed_run_left_is_due(delta_tables: DeltaTables, inbox: Inbox) -> None:
    predict(delta_tables, ("a.jpg", "roses", 1))
    killed("after claimed", delta_tables, inbox, ROSES)
    assert due_alerts(delta_tables, NOON).startswith("alerts to oncall (1) waiting since")


def materialize(
    delta_tables: DeltaTables, path: Path, addresses: dict[str, str], instance: dg.DagsterInstance, **config: Any
) -> dg.ExecuteInProcessResult:
    """The asset with its checks, as Dagster runs them."""
    return dg.materialize(
        [prediction_alerts, every_alert_sent],
        instance=instance,
        run_config={"ops": {"prediction_alerts": {"config": config}}},
        resources={
            "delta_tables": delta_tables,
            "rules_file": RulesFile(path=str(path)),
            "alert_sender": AlertSender(addresses=addresses),
            "model_registry": ModelRegistry(tracking_uri=""),
        },
    )


def test_the_asset_says_what_was_told_and_no_address(
    delta_tables: DeltaTables, inbox: Inbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rules, instance = tmp_path / "alert_rules.yaml", dg.DagsterInstance.ephemeral()
    predict(delta_tables, ("a.jpg", "roses", 1))
    nothing = materialize(delta_tables, rules, {}, instance)
    (materialization,) = nothing.asset_materializations_for_node("prediction_alerts")
    assert materialization.metadata["remedy"].value == f"Write rules to {rules} (see docs/alerts.md)."
    rules.write_text(ROSES)
    inbox.answers = [DROP]
    unclear = materialize(delta_tables, rules, address(inbox), instance)
    (materialization,) = unclear.asset_materializations_for_node("prediction_alerts")
    figures = {
        name: materialization.metadata[name].value for name in (*NOTHING, "rules", "rows_added", "dagster/row_count")
    }
    assert figures == {
        **NOTHING,
        "alerts_new": 1,
        "alerts_unclear": 1,
        "rules": 1,
        "rows_added": 1,
        "dagster/row_count": 1,
    }
    assert "a.jpg" in str(materialization.metadata["newest"].value)
    (check,) = unclear.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    (message_id,) = alerts(delta_tables, "message_id")
    assert f"`not_arrived: [{message_id}]`" in str(check.description)
    mended = materialize(delta_tables, rules, address(inbox), instance, not_arrived=[message_id])
    assert [check.passed for check in mended.get_asset_check_evaluations()] == [True]
    assert len(inbox.accepted) == 1
    logs = [entry for result in (nothing, unclear, mended) for entry in instance.all_logs(result.run_id)]
    tables = "".join(file.read_text(errors="replace") for file in Path(delta_tables.root).rglob("*") if file.is_file())
    assert SECRET not in f"{logs} {materialization} {check} {caplog.text} {tables}"
