"""Waiting alerts sent, so that each is accepted once: claimed by a commit before, recorded by a commit after."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from image_assets.predictions.alert_messages import Message, to_messages
from image_assets.predictions.alert_rules import AlertRules
from image_assets.predictions.alert_states import (
    SAME_ATTEMPT,
    SENT,
    UNCLEAR,
    WAITING,
    claim,
    read_alerts,
    record,
    resting,
)
from resources.alert_sender import ID_HEADER, WEBHOOKS, AlertSender, Answer, Receiver
from resources.thin_tables import ThinTables

PAUSES_MINUTES = (1, 2, 4, 8, 16, 32, 60)  # after the first failure of a message, the second, …; then always the last
UNCLEAR_MINUTES = 15  # the next message would become unclear as well


def to_receivers(rules: AlertRules, alert_sender: AlertSender) -> dict[str, Receiver]:
    """The receivers that the rules send to; a ValueError when one cannot be sent to as the rules say."""
    receivers = {name: alert_sender.receiver(name) for name in rules.receiver_names}
    for name, receiver in receivers.items():
        if rules.deduplicates(name) and not receiver.takes_ids:
            raise ValueError(
                f"{name} is said to deduplicate, and messages to its address carry no {ID_HEADER}: "
                f"expected a webhook ({', '.join(WEBHOOKS)}), or no `deduplicates`"
            )
    return receivers


def pause(attempts: int) -> timedelta:
    """How long a receiver is left alone that did not take a message at so many attempts."""
    return timedelta(minutes=PAUSES_MINUTES[min(attempts, len(PAUSES_MINUTES)) - 1])


def consequences(answer: Answer, attempts: int, now: datetime, *, deduplicates: bool) -> dict[str, Any]:
    """What an answer means for the alerts of a message: columns of prediction_alerts, which have several types."""
    if answer.outcome == "accepted":
        return {"state": SENT, "note": None, "next_attempt_at": None, "sent_at": datetime.now(UTC)}
    if answer.outcome == "unclear" and not deduplicates:
        return {"state": UNCLEAR, "note": answer.reason, "next_attempt_at": now + timedelta(minutes=UNCLEAR_MINUTES)}
    return {"state": WAITING, "note": answer.reason, "next_attempt_at": now + pause(attempts)}


def deliver(thin_tables: ThinTables, receiver: Receiver, message: Message, now: datetime, *, deduplicates: bool) -> int:
    """Claim a message, send it, record what became of it; how many alerts were accepted.

    A kill between claim and record is the only one that leaves a doubt, and nothing but the sending lies there.
    """
    attempts = message.attempts + 1
    claimed = claim(thin_tables, message.alerts, message.message_id, attempts)
    if claimed.empty:
        return 0  # another run was faster
    told = replace(message, alerts=claimed)
    answer = receiver.send(told.message_id, told.title, told.text)
    record(thin_tables, claimed, SAME_ATTEMPT, **consequences(answer, attempts, now, deduplicates=deduplicates))
    return len(claimed) if answer.outcome == "accepted" else 0


def send_waiting(
    thin_tables: ThinTables,
    alert_sender: AlertSender,
    receivers: Mapping[str, Receiver],
    rules: AlertRules,
    now: datetime,
) -> int:
    """Send what waits, the oldest message first, until a receiver does not take one; how many alerts were accepted."""
    sent = 0
    for name, alerts in read_alerts(thin_tables, [WAITING, UNCLEAR]).groupby("receiver"):
        waiting = alerts.loc[alerts["state"] == WAITING]
        if waiting.empty or resting(alerts, now):
            continue
        try:
            receiver = receivers.get(str(name)) or alert_sender.receiver(str(name))
        except ValueError as error:  # no rule sends there any longer: no reason to stop the others
            record(thin_tables, waiting, note=str(error), next_attempt_at=now + pause(len(PAUSES_MINUTES)))
            continue
        for message in to_messages(waiting, receiver.room):
            accepted = deliver(thin_tables, receiver, message, now, deduplicates=rules.deduplicates(str(name)))
            if not accepted:
                break
            sent += accepted
    return sent
