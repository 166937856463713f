"""Waiting alerts sent, so that each is accepted once: claimed by a commit before, recorded by a commit after."""

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
from resources.alerts import ID_HEADER, WEBHOOKS, AlertSender, DeliveryResult, Receiver
from resources.delta.delta_tables import DeltaTables

WAITING, SENDING, SENT, UNCLEAR = "waiting", "sending", "sent", "unclear"
UNSENT = (WAITING, SENDING, UNCLEAR)
COLUMNS = PREDICTION_ALERTS.columns.fieldNames()
ALL_OTHERS = "*"  # every unclear message that is not named
STILL_WAITING = f"old.state = '{WAITING}' AND old.attempts < new.attempts"
SAME_ATTEMPT = "old.attempts = new.attempts"
INTERRUPTED = "a run ended while the message was on its way"


def read_alerts(delta_tables: DeltaTables, states: Sequence[str] = UNSENT) -> pd.DataFrame:
    """The alerts in these states, with all their columns."""
    rows = delta_tables.read(PREDICTION_ALERTS, COLUMNS, pc.field("state").isin(states))
    return rows.to_pandas(timestamp_as_object=True)  # other ones with a time zone are deprecated between the two


def merge_alerts(delta_tables: DeltaTables, alerts: pd.DataFrame, where: str = "true", **changes: Any) -> pd.DataFrame:
    """Commit the alerts with these columns changed, in one commit, new ones too; the alerts as they are then.

    A change is one value for all of them, or one for each: Any, for pandas takes both. `where` says of which of those
    that are there, in SQL.
    """
    lacking = [name for name in COLUMNS if name not in alerts and name not in changes]
    alerts = alerts.assign(**changes, **dict.fromkeys(lacking)).reindex(columns=COLUMNS)
    if len(alerts):
        rows = pa.Table.from_pandas(alerts, to_arrow_schema(PREDICTION_ALERTS.columns), preserve_index=False)
        updates = {name: f"CASE WHEN {where} THEN new.{name} ELSE old.{name} END" for name in changes or ["state"]}
        delta_tables.merge(rows, PREDICTION_ALERTS, updates=updates)
    return alerts


def claim(delta_tables: DeltaTables, alerts: pd.DataFrame, message_id: str, attempts: int) -> pd.DataFrame:
    """Commit that these alerts are on their way, those that still wait as they did; the ones that were claimed.

    Runs do not send side by side, for the pool has one slot. One that was declared over may still be at it, though.
    """
    merge_alerts(delta_tables, alerts, STILL_WAITING, state=SENDING, message_id=message_id, attempts=attempts)
    claimed = read_alerts(delta_tables, [SENDING])
    return claimed.loc[claimed["message_id"] == message_id]


def settle_interrupted(delta_tables: DeltaTables, deduplicating: Sequence[str]) -> None:
    """Decide on messages that a killed run left on their way; no other run can be at it, for the pool has one slot.

    A receiver that takes a message once gets the very same one again. For any other nobody can tell whether it
    arrived: a person decides.
    """
    alerts = read_alerts(delta_tables, [SENDING])
    again = alerts["receiver"].isin(deduplicating)
    merge_alerts(
        delta_tables,
        alerts,
        state=np.where(again, WAITING, UNCLEAR),
        note=np.where(again, f"{INTERRUPTED}: it is sent again", f"{INTERRUPTED}: nobody knows whether it arrived"),
        next_attempt_at=None,
    )


def settle_unclear(delta_tables: DeltaTables, arrived: Sequence[str], not_arrived: Sequence[str]) -> None:
    """Take a person's word for unclear messages: some arrived, others are sent again; ValueError for unknown ones."""
    existing_ids = set(delta_tables.read(PREDICTION_ALERTS, ["message_id"])["message_id"].to_pylist()) | {ALL_OTHERS}
    if unknown := sorted({*arrived, *not_arrived} - existing_ids):
        raise ValueError(
            f"there is no message {', '.join(unknown)}: expected message_ids of prediction_alerts, or {ALL_OTHERS}"
        )
    if both := sorted(set(arrived) & set(not_arrived)):
        raise ValueError(f"{', '.join(both)} is said to have arrived, and not to have: expected one of the two")
    alerts = read_alerts(delta_tables, [UNCLEAR])
    did, did_not = (alerts["message_id"].isin(message_ids) for message_ids in (arrived, not_arrived))
    others = ~(did | did_not)
    did, did_not = did | (others & (ALL_OTHERS in arrived)), did_not | (others & (ALL_OTHERS in not_arrived))
    merge_alerts(
        delta_tables, alerts.loc[did], state=SENT, sent_at=datetime.now(UTC), note="a person says that it arrived"
    )
    merge_alerts(
        delta_tables,
        alerts.loc[did_not],
        state=WAITING,
        note="a person says that it did not arrive",
        next_attempt_at=None,
    )


def is_paused(alerts: pd.DataFrame, now: datetime) -> bool:
    """Whether the receiver of these alerts failed lately, and is left alone."""
    return any(time > now for time in alerts["next_attempt_at"].dropna())


def due_alerts(delta_tables: DeltaTables, now: datetime) -> str:
    """What a run would send now, in words that are others after each attempt; empty when nothing."""
    lines = []
    for receiver, alerts in read_alerts(delta_tables).groupby("receiver"):
        to_send = alerts.loc[alerts["state"] != UNCLEAR]
        if len(to_send) and not is_paused(alerts, now):
            since = max([*to_send["matched_at"], *to_send["next_attempt_at"].dropna()])
            lines.append(f"alerts wait for {receiver} ({len(to_send)}) since {since.isoformat()}")
    return ", ".join(lines)


MESSAGES = 10  # of a rule to a receiver in a run; the last one counts what none has room for
OTHER_CHARACTERS = 300  # for the title and what is said below the alerts
# Columns, and whether they sort ascending.
ORDER = {"probability": False, "path": True, "model_name": True, "model_version": False, "image_id": True}


@dataclass(frozen=True)
class Message:
    """What is sent, and of which alerts it tells: the same alerts and room, the same words, also in a later run."""

    message_id: str
    alerts: pd.DataFrame
    room: int

    @property
    def attempts(self) -> int:
        """How often it was sent before."""
        return int(self.alerts["attempts"].max())

    @property
    def title(self) -> str:
        """The rule, and how many predictions met it."""
        count = len(self.alerts)
        return f"{self.alerts['rule'].iloc[0]}: {count:,} prediction{'s' if count > 1 else ''}"

    @property
    def text(self) -> str:
        """A line for each alert, the surest first, as far as there is room; the number of the others; the id."""
        lines = to_lines(surest_first(self.alerts))
        named = fitting(lines, self.room)
        left = len(lines) - named
        more = [f"and {left:,} more, which prediction_alerts lists by the message_id"] if left else []
        return "\n".join([*lines[:named], *more, f"message_id {self.message_id}"])


def surest_first(alerts: pd.DataFrame) -> pd.DataFrame:
    """The alerts in the order in which they are told; no two of a rule and receiver are in the same place."""
    return alerts.sort_values(list(ORDER), ascending=list(ORDER.values()))


def to_lines(alerts: pd.DataFrame) -> list[str]:
    """Label, probability, model version and path of each."""
    columns = (alerts[name] for name in ("label", "probability", "model_version", "path"))
    return [
        f"{label} {probability:.1%}, version {version}, {path}"
        for label, probability, version, path in zip(*columns, strict=True)
    ]


def fitting(lines: list[str], room: int) -> int:
    """How many of the lines, from the first, fit into a message; at least one."""
    left = room - OTHER_CHARACTERS
    for number, line in enumerate(lines):
        left -= len(line) + 1
        if left < 0:
            return max(number, 1)
    return len(lines)


def to_messages(alerts: pd.DataFrame, room: int) -> Iterator[Message]:
    """Waiting alerts of one receiver as messages: those that were tried before as they were, then new ones by rule."""
    alerts = surest_first(alerts)
    for _, together in sorted(alerts.groupby("message_id"), key=lambda message: message[1]["matched_at"].min()):
        yield Message(str(together["message_id"].iloc[0]), together, room)
    for _, of_rule in alerts.loc[alerts["message_id"].isna()].groupby("rule"):
        lines, start = to_lines(of_rule), 0
        for number in range(1, MESSAGES + 1):
            end = start + fitting(lines[start:], room) if number < MESSAGES else len(lines)
            if start < end:
                yield Message(str(uuid4()), of_rule.iloc[start:end], room)
            start = end


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


def columns_after(result: DeliveryResult, attempts: int, now: datetime, *, deduplicates: bool) -> dict[str, Any]:
    """What an answer means for the alerts of a message: columns of prediction_alerts, which have several types."""
    if result.outcome == "accepted":
        return {"state": SENT, "note": None, "next_attempt_at": None, "sent_at": datetime.now(UTC)}
    if result.outcome == "unclear" and not deduplicates:
        return {"state": UNCLEAR, "note": result.reason, "next_attempt_at": now + timedelta(minutes=UNCLEAR_MINUTES)}
    return {"state": WAITING, "note": result.reason, "next_attempt_at": now + pause(attempts)}


def deliver(
    delta_tables: DeltaTables, receiver: Receiver, message: Message, now: datetime, *, deduplicates: bool
) -> int:
    """Claim a message, send it, record what became of it; how many alerts were accepted.

    A kill between claim and record is the only one that leaves a doubt, and nothing but the sending lies there.
    """
    attempts = message.attempts + 1
    claimed = claim(delta_tables, message.alerts, message.message_id, attempts)
    if claimed.empty:
        return 0  # another run was faster
    claimed_message = replace(message, alerts=claimed)
    result = receiver.send(claimed_message.message_id, claimed_message.title, claimed_message.text)
    merge_alerts(delta_tables, claimed, SAME_ATTEMPT, **columns_after(result, attempts, now, deduplicates=deduplicates))
    return len(claimed) if result.outcome == "accepted" else 0


def send_waiting(
    delta_tables: DeltaTables,
    alert_sender: AlertSender,
    receivers: Mapping[str, Receiver],
    rules: AlertRules,
    now: datetime,
) -> int:
    """Send what waits, the oldest message first, until a receiver does not take one; how many alerts were accepted."""
    sent = 0
    for name, alerts in read_alerts(delta_tables, [WAITING, UNCLEAR]).groupby("receiver"):
        waiting = alerts.loc[alerts["state"] == WAITING]
        if waiting.empty or is_paused(alerts, now):
            continue
        try:
            receiver = receivers.get(str(name)) or alert_sender.receiver(str(name))
        except ValueError as error:  # no rule sends there any longer: no reason to stop the others
            merge_alerts(delta_tables, waiting, note=str(error), next_attempt_at=now + pause(len(PAUSES_MINUTES)))
            continue
        for message in to_messages(waiting, receiver.room):
            accepted = deliver(delta_tables, receiver, message, now, deduplicates=rules.deduplicates(str(name)))
            if not accepted:
                break
            sent += accepted
    return sent
