"""Real messages to receivers on this machine: what became of each is known, and no address is ever said."""

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
        (500, DeliveryResult("refused", "the receiver answered with HTTP status 500")),
        (404, DeliveryResult("refused", "the receiver answered with HTTP status 404")),
        (302, DeliveryResult("refused", "the receiver answered with HTTP status 302")),
        (DROP, DeliveryResult("unclear", "the receiver gave no answer: nobody knows whether the message arrived")),
        (HANG, DeliveryResult("unclear", "the receiver gave no answer: nobody knows whether the message arrived")),
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
        (554, DeliveryResult("refused", "the mail server answered 554")),
        (DROP, DeliveryResult("unclear", "the receiver gave no answer: nobody knows whether the message arrived")),
    ],
)
def test_the_same_holds_for_mail(mailbox: Inbox, answer: int | str, expected: DeliveryResult) -> None:
    mailbox.answers = [answer]
    assert mail(mailbox).send("id-1", "a", "b") == expected


@pytest.mark.parametrize("kind", ["json", "jsons", "mailto"])
def test_where_no_connection_came_about_nothing_was_sent(kind: str) -> None:
    port = unused_port()
    address = f"{kind}://127.0.0.1:{port}"
    if kind == "mailto":
        address += "?smtp=127.0.0.1&from=a@a.example&to=b@b.example"
    assert receiver(address).send("id-1", "a", "b") == DeliveryResult(
        "refused", "no connection to the receiver came about"
    )


def test_what_is_too_long_for_a_service_is_cut_and_never_split(inbox: Inbox) -> None:
    long = hook(inbox, "&overflow=split")
    assert long.send("id-1", "a", "line\n" * long.room).outcome == "accepted"
    (message,) = inbox.messages
    assert len(message["message"]) <= long.room


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "IMAGE_ASSETS_ALERT_ONCALL is not set: expected the address of oncall, such as mailto://"),
        (SECRET, "IMAGE_ASSETS_ALERT_ONCALL holds no address that apprise can use: expected one such as"),
        (f"nothing://{SECRET}", "IMAGE_ASSETS_ALERT_ONCALL holds no address that apprise can use"),
        (f"slack://{SECRET}", "IMAGE_ASSETS_ALERT_ONCALL holds no address that apprise can use"),
        (f"mailto://a:{SECRET}@a.example?to=b@b.example,c@c.example", "names 2 targets, .* expected one; give each"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_by_the_name_of_its_variable(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        receiver(address)
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None


def test_no_address_is_ever_said(
    inbox: Inbox, mailbox: Inbox, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3"):
        caplog.set_level(logging.DEBUG, logger=name)
    said = []
    for answer in (200, 500, DROP, HANG):
        inbox.answers = mailbox.answers = [answer]
        said += [hook(inbox).send("id-1", "a", "b"), mail(mailbox).send("id-1", "a", "b")]
    said += [receiver(f"jsons://{SECRET}:{SECRET}@127.0.0.1:{inbox.port}/{SECRET}?verify=no").send("id-1", "a", "b")]
    sender = AlertSender(addresses={"oncall": f"json://{SECRET}"})
    told = f"{said} {sender!r} {sender.receiver('oncall')!r} {caplog.text} {capfd.readouterr()}"
    assert not re.search(f"{SECRET}|127.0.0.1", told, re.IGNORECASE)
    logging.getLogger("urllib3").debug("heard again")
    assert "heard again" in caplog.text


def test_dagster_shows_the_name_of_the_variable_in_place_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ASSETS_ALERT_ONCALL", f"json://{SECRET}")
    found = []

    @dg.asset
    def told(alert_sender: AlertSender) -> None:
        found.append(alert_sender.addresses["oncall"])

    sender = AlertSender(addresses={"oncall": dg.EnvVar("IMAGE_ASSETS_ALERT_ONCALL")})
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([told], resources={"alert_sender": sender}, instance=instance)
        logs = str(instance.all_logs(result.run_id))
    assert found == [f"json://{SECRET}"]
    assert SECRET not in f"{logs} {result.dagster_run} {sender!r}"


def test_what_the_file_says_is_read_anew_each_time(tmp_path: Path) -> None:
    file = RulesFile(path=str(tmp_path / "rules.yaml"))
    assert file.text() == ""
    for text in ("rules: []", "# Grüße"):
        (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
        assert file.text() == text


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"rules.yaml cannot be read .*: write them there, or let IMAGE_ASSETS_ALERT_R"
    ):
        RulesFile(path=str(tmp_path / "rules.yaml"), required=True).text()


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        RulesFile(path=str(tmp_path / "rules.yaml")).text()
