"""Sends waiting alerts exactly once: a commit claims them before they are sent, another one records the result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.predictions.alert_rules import AlertRules
from image_assets.schemas import PREDICTION_ALERTS
from resources.alerts import ID_HEADER, WEBHOOKS, AlertSender, DeliveryResult, Outcome, Receiver
from resources.delta.delta_tables import DeltaTables

WAITING, SENDING, SENT, UNCLEAR, DROPPED = "waiting", "sending", "sent", "unclear", "dropped"
UNSENT = (WAITING, SENDING, UNCLEAR)
COLUMNS = PREDICTION_ALERTS.columns.fieldNames()
ALL_OTHERS = "*"  # all unclear messages that are not listed
STILL_WAITING = f"old.state = '{WAITING}' AND old.attempts < new.attempts"
SAME_ATTEMPT = "old.attempts = new.attempts"
INTERRUPTED = "a run ended while it sent the message"
MESSAGES = 10  # per rule, receiver and run; the last message counts the alerts that do not fit
OTHER_CHARACTERS = 300  # for the title and the lines below the alerts
# Columns, and whether they sort ascending.
ORDER = {"probability": False, "path": True, "model_name": True, "model_version": False, "image_id": True}
PAUSES_MINUTES = (1, 2, 4, 8, 16, 32, 60)  # after the first failure, the second, and so on
UNCLEAR_MINUTES = 15  # the next message would probably become unclear as well


def read_alerts(delta_tables: DeltaTables, states: Sequence[str] = UNSENT) -> pd.DataFrame:
    """The alerts in these states, with all columns."""
    rows = delta_tables.read(PREDICTION_ALERTS, COLUMNS, pc.field("state").isin(states))
    return rows.to_pandas(
        timestamp_as_object=True
    )  # pandas conversion of other timestamps with a time zone is deprecated


def merge_alerts(delta_tables: DeltaTables, alerts: pd.DataFrame, where: str = "true", **changes: Any) -> pd.DataFrame:
    """Inserts or updates alerts in one commit, and returns them with the changes applied.

    Args:
        where: SQL condition on `old` and `new`; existing alerts that do not meet it stay as they are.
        changes: New values by column, each a scalar or one value per alert (hence Any).
    """
    lacking = [name for name in COLUMNS if name not in alerts and name not in changes]
    alerts = alerts.assign(**changes, **dict.fromkeys(lacking)).reindex(columns=COLUMNS)
    if len(alerts):
        rows = pa.Table.from_pandas(alerts, to_arrow_schema(PREDICTION_ALERTS.columns), preserve_index=False)
        updates = {name: f"CASE WHEN {where} THEN new.{name} ELSE old.{name} END" for name in changes or ["state"]}
        delta_tables.merge(rows, PREDICTION_ALERTS, updates=updates)
    return alerts


def claim(delta_tables: DeltaTables, alerts: pd.DataFrame, message_id: str, attempts: int) -> pd.DataFrame:
    """Marks alerts as being sent if they are still waiting, and returns those that were claimed.

    The pool lets only one run send at a time, but a run that Dagster declared failed may still be active.
    """
    merge_alerts(delta_tables, alerts, STILL_WAITING, state=SENDING, message_id=message_id, attempts=attempts)
    claimed = read_alerts(delta_tables, [SENDING])
    return claimed.loc[claimed["message_id"] == message_id]


def settle_interrupted(delta_tables: DeltaTables, deduplicating: Sequence[str]) -> None:
    """Settles messages that a killed run was sending; the pool has one slot, so no other run is sending them.

    Receivers that ignore repeated messages get the same message again. For all others it is unknown whether the
    message arrived, so it becomes unclear and a person decides.
    """
    alerts = read_alerts(delta_tables, [SENDING])
    again = alerts["receiver"].isin(deduplicating)
    merge_alerts(
        delta_tables,
        alerts,
        state=np.where(again, WAITING, UNCLEAR),
        note=np.where(again, f"{INTERRUPTED}: it will be sent again", f"{INTERRUPTED}: it may or may not have arrived"),
        next_attempt_at=None,
    )


def settle_unclear(delta_tables: DeltaTables, arrived: Sequence[str], not_arrived: Sequence[str]) -> None:
    """Marks unclear messages as sent or waiting, as a person decided.

    Raises:
        ValueError: A message_id is unknown, or in both lists.
    """
    existing_ids = set(delta_tables.read(PREDICTION_ALERTS, ["message_id"])["message_id"].to_pylist()) | {ALL_OTHERS}
    if unknown := sorted({*arrived, *not_arrived} - existing_ids):
        raise ValueError(
            f"there is no message {', '.join(unknown)}: expected message_ids of prediction_alerts, or {ALL_OTHERS}"
        )
    if both := sorted(set(arrived) & set(not_arrived)):
        raise ValueError(f"{', '.join(both)} is in both `arrived` and `not_arrived`: list it in one of them")
    alerts = read_alerts(delta_tables, [UNCLEAR])
    did, did_not = (alerts["message_id"].isin(message_ids) for message_ids in (arrived, not_arrived))
    others = ~(did | did_not)
    did, did_not = did | (others & (ALL_OTHERS in arrived)), did_not | (others & (ALL_OTHERS in not_arrived))
    merge_alerts(
        delta_tables, alerts.loc[did], state=SENT, sent_at=datetime.now(UTC), note="confirmed as arrived by a person"
    )
    merge_alerts(
        delta_tables,
        alerts.loc[did_not],
        state=WAITING,
        note="reported as not arrived by a person",
        next_attempt_at=None,
    )


def drop_waiting(delta_tables: DeltaTables, receivers_or_messages: Sequence[str]) -> None:
    """Marks waiting alerts as dropped, as a person decided: those to some receivers, and those in some messages.

    Raises:
        ValueError: No alert is waiting for a receiver of that name, or in a message with that id.
    """
    alerts = read_alerts(delta_tables, [WAITING])
    if unknown := sorted({*receivers_or_messages} - {*alerts["receiver"], *alerts["message_id"]}):
        raise ValueError(
            f"no alert is waiting for {', '.join(unknown)}: expected receivers or message_ids of waiting alerts"
        )
    dropped = alerts["receiver"].isin(receivers_or_messages) | alerts["message_id"].isin(receivers_or_messages)
    merge_alerts(delta_tables, alerts.loc[dropped], state=DROPPED, note="dropped by a person", next_attempt_at=None)


def is_paused(alerts: pd.DataFrame, now: datetime) -> bool:
    """Whether the receiver of these alerts failed recently and is not retried yet."""
    return any(time > now for time in alerts["next_attempt_at"].dropna())


def due_alerts(delta_tables: DeltaTables, now: datetime) -> str:
    """Describes the alerts that a run would send now; the text changes with each attempt, and is empty for none."""
    lines = []
    for receiver, alerts in read_alerts(delta_tables).groupby("receiver"):
        to_send = alerts.loc[alerts["state"] != UNCLEAR]
        if len(to_send) and not is_paused(alerts, now):
            since = max([*to_send["matched_at"], *to_send["next_attempt_at"].dropna()])
            lines.append(f"alerts to {receiver} ({len(to_send)}) waiting since {since.isoformat()}")
    return ", ".join(lines)


@dataclass(frozen=True)
class Message:
    """A message about some alerts. Its text depends only on alerts and room, so retries are identical."""

    message_id: str
    alerts: pd.DataFrame
    room: int

    @property
    def attempts(self) -> int:
        """How many times it was sent before."""
        return int(self.alerts["attempts"].max())

    @property
    def title(self) -> str:
        """The rule and the number of matching predictions."""
        count = len(self.alerts)
        return f"{self.alerts['rule'].iloc[0]}: {count:,} prediction{'s' if count > 1 else ''}"

    @property
    def text(self) -> str:
        """A line per alert by descending probability, the number of alerts that do not fit, and the message_id."""
        lines = to_lines(most_confident_first(self.alerts))
        named = fitting(lines, self.room)
        left = len(lines) - named
        more = [f"and {left:,} more, listed in prediction_alerts under this message_id"] if left else []
        return "\n".join([*lines[:named], *more, f"message_id {self.message_id}"])


def most_confident_first(alerts: pd.DataFrame) -> pd.DataFrame:
    """The alerts by descending probability, in an order without ties for one rule and receiver."""
    return alerts.sort_values(list(ORDER), ascending=list(ORDER.values()))


def to_lines(alerts: pd.DataFrame) -> list[str]:
    """One line per alert: label, probability, model version and path."""
    columns = (alerts[name] for name in ("label", "probability", "model_version", "path"))
    return [
        f"{'abstained,' if pd.isna(label) else label} {probability:.1%}, version {version}, {path}"
        for label, probability, version, path in zip(*columns, strict=True)
    ]


def fitting(lines: list[str], room: int) -> int:
    """How many of the first lines fit into a message; at least one."""
    left = room - OTHER_CHARACTERS
    for number, line in enumerate(lines):
        left -= len(line) + 1
        if left < 0:
            return max(number, 1)
    return len(lines)


def to_messages(alerts: pd.DataFrame, room: int) -> Iterator[Message]:
    """Waiting alerts of one receiver as messages: first failed messages, unchanged, then new ones by rule."""
    alerts = most_confident_first(alerts)
    for _, together in sorted(alerts.groupby("message_id"), key=lambda message: message[1]["matched_at"].min()):
        yield Message(str(together["message_id"].iloc[0]), together, room)
    for _, of_rule in alerts.loc[alerts["message_id"].isna()].groupby("rule"):
        lines, start = to_lines(of_rule), 0
        for number in range(1, MESSAGES + 1):
            end = start + fitting(lines[start:], room) if number < MESSAGES else len(lines)
            if start < end:
                yield Message(str(uuid4()), of_rule.iloc[start:end], room)
            start = end


def to_receivers(rules: AlertRules, alert_sender: AlertSender) -> dict[str, Receiver]:
    """The receivers of the rules, by name; ValueError if one cannot do what the rules say."""
    receivers = {name: alert_sender.receiver(name) for name in rules.receiver_names}
    for name, receiver in receivers.items():
        if rules.deduplicates(name) and not receiver.takes_ids:
            raise ValueError(
                f"{name} has `deduplicates`, but messages to its address carry no {ID_HEADER}: "
                f"use a webhook ({', '.join(WEBHOOKS)}), or remove `deduplicates`"
            )
    return receivers


def pause(attempts: int) -> timedelta:
    """How long to wait before the next attempt, after this many failed attempts."""
    return timedelta(minutes=PAUSES_MINUTES[min(attempts, len(PAUSES_MINUTES)) - 1])


def columns_after(result: DeliveryResult, attempts: int, now: datetime, *, deduplicates: bool) -> dict[str, Any]:
    """The changed columns of a message's alerts after a delivery (their values have several types)."""
    if result.outcome == "accepted":
        return {"state": SENT, "note": None, "next_attempt_at": None, "sent_at": datetime.now(UTC)}
    if result.outcome == "unclear" and not deduplicates:
        return {"state": UNCLEAR, "note": result.reason, "next_attempt_at": now + timedelta(minutes=UNCLEAR_MINUTES)}
    return {"state": WAITING, "note": result.reason, "next_attempt_at": now + pause(attempts)}


def deliver(
    delta_tables: DeltaTables, receiver: Receiver, message: Message, now: datetime, *, deduplicates: bool
) -> tuple[Outcome | None, int]:
    """Claims a message, sends it, records the result, and returns it with the number of alerts in the message.

    Only a kill between claim and record leaves it unclear whether the message arrived, so nothing but sending happens
    there.
    """
    attempts = message.attempts + 1
    claimed = claim(delta_tables, message.alerts, message.message_id, attempts)
    if claimed.empty:
        return None, 0  # another run claimed them first
    claimed_message = replace(message, alerts=claimed)
    result = receiver.send(claimed_message.message_id, claimed_message.title, claimed_message.text)
    merge_alerts(delta_tables, claimed, SAME_ATTEMPT, **columns_after(result, attempts, now, deduplicates=deduplicates))
    return result.outcome, len(claimed)


def send_waiting(
    delta_tables: DeltaTables,
    alert_sender: AlertSender,
    receivers: Mapping[str, Receiver],
    rules: AlertRules,
    now: datetime,
) -> int:
    """Sends waiting alerts, the oldest message first, until a receiver fails; returns the number of accepted alerts.

    A receiver that rejects one message still gets the next one.
    """
    sent = 0
    for name, alerts in read_alerts(delta_tables, [WAITING, UNCLEAR]).groupby("receiver"):
        waiting = alerts.loc[alerts["state"] == WAITING]
        if waiting.empty or is_paused(alerts, now):
            continue
        try:
            receiver = receivers.get(str(name)) or alert_sender.receiver(str(name))
        except ValueError as error:  # its rule was removed; the other receivers still get theirs
            merge_alerts(delta_tables, waiting, note=str(error), next_attempt_at=now + pause(len(PAUSES_MINUTES)))
            continue
        for message in to_messages(waiting, receiver.room):
            again = rules.deduplicates(str(name))
            outcome, delivered = deliver(delta_tables, receiver, message, now, deduplicates=again)
            if outcome not in ("accepted", "rejected"):
                break
            sent += delivered if outcome == "accepted" else 0
    return sent
