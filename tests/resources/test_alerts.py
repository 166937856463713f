"""Tests of alerts, with real messages to local receivers: each result is known, and addresses are never shown."""

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from resources.alerts import AlertSender, DeliveryResult, Receiver, RulesFile
from tests.support.receivers import DROP, HANG, SECRET, Inbox, mail_server


@pytest.fixture
def mailbox() -> Iterator[Inbox]:
    with mail_server() as mailbox:
        yield mailbox


def receiver(address: str) -> Receiver:
    return AlertSender(addresses={"oncall": address}).receiver("oncall")


def hook(inbox: Inbox, more: str = "") -> Receiver:
    return receiver(f"json://ann:{SECRET}@127.0.0.1:{inbox.port}/{SECRET}?rto=0.3{more}")


def mail(mailbox: Inbox) -> Receiver:
    return receiver(f"mailto://127.0.0.1:{mailbox.port}?smtp=127.0.0.1&from=a@a.example&to={SECRET}@b.example")


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def test_a_webhook_gets_title_text_and_id(inbox: Inbox) -> None:
    assert hook(inbox).send("id-1", "roses: 2 predictions", "roses <b>\n97.0%").outcome == "accepted"
    (message,) = inbox.messages
    assert (message["id"], message["title"], message["message"]) == (
        "id-1",
        "roses: 2 predictions",
        "roses <b>\n97.0%",
    )


def test_a_mail_arrives(mailbox: Inbox) -> None:
    assert mail(mailbox).send("id-1", "roses: 2 predictions", "roses <b>\n97.0%").outcome == "accepted"
    (message,) = mailbox.messages
    assert "Subject: roses: 2 predictions" in message["message"]
    assert "roses <b>\r\n97.0%" in message["message"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (500, DeliveryResult("refused", "the receiver returned HTTP status 500")),
        (404, DeliveryResult("refused", "the receiver returned HTTP status 404")),
        (302, DeliveryResult("refused", "the receiver returned HTTP status 302")),
        (413, DeliveryResult("rejected", "the receiver returned HTTP status 413")),
        (DROP, DeliveryResult("unclear", "the receiver did not respond, so the message may or may not have arrived")),
        (HANG, DeliveryResult("unclear", "the receiver did not respond, so the message may or may not have arrived")),
    ],
)
def test_an_error_is_a_refusal_and_silence_is_unclear(
    inbox: Inbox, answer: int | str, expected: DeliveryResult
) -> None:
    inbox.answers = [answer]
    # Trying again, and forgiving, is not left to the address.
    assert hook(inbox, "&retry=3&wait=0.1&optional=yes").send("id-1", "a", "b") == expected
    assert len(inbox.messages) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (554, DeliveryResult("refused", "the mail server returned 554")),
        (DROP, DeliveryResult("unclear", "the receiver did not respond, so the message may or may not have arrived")),
    ],
)
def test_the_same_holds_for_mail(mailbox: Inbox, answer: int | str, expected: DeliveryResult) -> None:
    mailbox.answers = [answer]
    assert mail(mailbox).send("id-1", "a", "b") == expected


@pytest.mark.parametrize("kind", ["json", "jsons", "mailto"])
def test_without_a_connection_nothing_was_sent(kind: str) -> None:
    port = unused_port()
    address = f"{kind}://127.0.0.1:{port}"
    if kind == "mailto":
        address += "?smtp=127.0.0.1&from=a@a.example&to=b@b.example"
    assert receiver(address).send("id-1", "a", "b") == DeliveryResult("refused", "no connection to the receiver")


def test_a_long_message_is_cut_and_never_split(inbox: Inbox) -> None:
    long = hook(inbox, "&overflow=split")
    assert long.send("id-1", "a", "line\n" * long.room).outcome == "accepted"
    (message,) = inbox.messages
    assert len(message["message"]) <= long.room


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "IMAGE_ASSETS_ALERT_ONCALL is not set: expected the address of oncall, such as mailto://"),
        (SECRET, "IMAGE_ASSETS_ALERT_ONCALL is not an address that apprise supports: expected one such as"),
        (f"nothing://{SECRET}", "IMAGE_ASSETS_ALERT_ONCALL is not an address that apprise supports"),
        (f"slack://{SECRET}", "IMAGE_ASSETS_ALERT_ONCALL is not an address that apprise supports"),
        (
            f"mailto://a:{SECRET}@a.example?to=b@b.example,c@c.example",
            "has 2 targets: expected one, .*; use one receiver per target",
        ),
    ],
)
def test_an_invalid_address_is_rejected_by_the_name_of_its_variable(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as rejected:
        receiver(address)
    assert SECRET not in str(rejected.value)
    assert rejected.value.__context__ is None


def test_addresses_are_never_shown(
    inbox: Inbox, mailbox: Inbox, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3"):
        caplog.set_level(logging.DEBUG, logger=name)
    results = []
    for answer in (200, 500, DROP, HANG):
        inbox.answers = mailbox.answers = [answer]
        results += [hook(inbox).send("id-1", "a", "b"), mail(mailbox).send("id-1", "a", "b")]
    results += [receiver(f"jsons://{SECRET}:{SECRET}@127.0.0.1:{inbox.port}/{SECRET}?verify=no").send("id-1", "a", "b")]
    sender = AlertSender(addresses={"oncall": f"json://{SECRET}"})
    shown = f"{results} {sender!r} {sender.receiver('oncall')!r} {caplog.text} {capfd.readouterr()}"
    assert not re.search(f"{SECRET}|127.0.0.1", shown, re.IGNORECASE)
    logging.getLogger("urllib3").debug("logged again")
    assert "logged again" in caplog.text


def test_dagster_shows_the_name_of_the_variable_in_place_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ASSETS_ALERT_ONCALL", f"json://{SECRET}")
    found = []

    @dg.asset
    def alerted(alert_sender: AlertSender) -> None:
        found.append(alert_sender.addresses["oncall"])

    sender = AlertSender(addresses={"oncall": dg.EnvVar("IMAGE_ASSETS_ALERT_ONCALL")})
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([alerted], resources={"alert_sender": sender}, instance=instance)
        logs = str(instance.all_logs(result.run_id))
    assert found == [f"json://{SECRET}"]
    assert SECRET not in f"{logs} {result.dagster_run} {sender!r}"


def test_the_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = RulesFile(path=str(tmp_path / "rules.yaml"))
    assert file.text() == ""
    for text in ("rules: []", "# Grüße"):
        (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
        assert file.text() == text


def test_a_file_that_a_setting_names_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rules.yaml cannot be read .*Create the file, or set IMAGE_ASSETS_ALERT_R"):
        RulesFile(path=str(tmp_path / "rules.yaml"), required=True).text()


def test_a_file_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        RulesFile(path=str(tmp_path / "rules.yaml")).text()
