"""How far alerts have come: read from prediction_alerts, and changed in it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.schemas import PREDICTION_ALERTS
from resources.thin_tables import ThinTables

WAITING, SENDING, SENT, UNCLEAR = "waiting", "sending", "sent", "unclear"
UNSENT = (WAITING, SENDING, UNCLEAR)
COLUMNS = PREDICTION_ALERTS.columns.fieldNames()
ALL = "*"  # every unclear message that is not named
STILL_WAITING = f"old.state = '{WAITING}' AND old.attempts < new.attempts"
SAME_ATTEMPT = "old.attempts = new.attempts"
INTERRUPTED = "a run ended while the message was on its way"


def read_alerts(thin_tables: ThinTables, states: Sequence[str] = UNSENT) -> pd.DataFrame:
    """The alerts in these states, with all their columns."""
    rows = thin_tables.read(PREDICTION_ALERTS, COLUMNS, pc.field("state").isin(states))
    return rows.to_pandas(timestamp_as_object=True)  # other ones with a time zone are deprecated between the two


def record(thin_tables: ThinTables, alerts: pd.DataFrame, where: str = "true", **changes: Any) -> pd.DataFrame:
    """Commit the alerts with these columns changed, in one commit, new ones too; the alerts as they are then.

    A change is one value for all of them, or one for each: Any, for pandas takes both. `where` says of which of those
    that are there, in SQL.
    """
    lacking = [name for name in COLUMNS if name not in alerts and name not in changes]
    alerts = alerts.assign(**changes, **dict.fromkeys(lacking)).reindex(columns=COLUMNS)
    if len(alerts):
        rows = pa.Table.from_pandas(alerts, to_arrow_schema(PREDICTION_ALERTS.columns), preserve_index=False)
        updates = {name: f"CASE WHEN {where} THEN new.{name} ELSE old.{name} END" for name in changes or ["state"]}
        thin_tables.merge(rows, PREDICTION_ALERTS, updates=updates)
    return alerts


def claim(thin_tables: ThinTables, alerts: pd.DataFrame, message_id: str, attempts: int) -> pd.DataFrame:
    """Commit that these alerts are on their way, those that still wait as they did; the ones that were claimed.

    Runs do not send side by side, for the pool has one slot. One that was declared over may still be at it, though.
    """
    record(thin_tables, alerts, STILL_WAITING, state=SENDING, message_id=message_id, attempts=attempts)
    claimed = read_alerts(thin_tables, [SENDING])
    return claimed.loc[claimed["message_id"] == message_id]


def settle_interrupted(thin_tables: ThinTables, deduplicating: Sequence[str]) -> None:
    """Decide on messages that a killed run left on their way; no other run can be at it, for the pool has one slot.

    A receiver that takes a message once gets the very same one again. For any other nobody can tell whether it
    arrived: a person decides.
    """
    alerts = read_alerts(thin_tables, [SENDING])
    again = alerts["receiver"].isin(deduplicating)
    record(
        thin_tables,
        alerts,
        state=np.where(again, WAITING, UNCLEAR),
        note=np.where(again, f"{INTERRUPTED}: it is sent again", f"{INTERRUPTED}: nobody knows whether it arrived"),
        next_attempt_at=None,
    )


def settle_unclear(thin_tables: ThinTables, arrived: Sequence[str], not_arrived: Sequence[str]) -> None:
    """Take a person's word for unclear messages: some arrived, others are sent again; ValueError for unknown ones."""
    known = set(thin_tables.read(PREDICTION_ALERTS, ["message_id"])["message_id"].to_pylist()) | {ALL}
    if unknown := sorted({*arrived, *not_arrived} - known):
        raise ValueError(
            f"there is no message {', '.join(unknown)}: expected message_ids of prediction_alerts, or {ALL}"
        )
    if both := sorted(set(arrived) & set(not_arrived)):
        raise ValueError(f"{', '.join(both)} is said to have arrived, and not to have: expected one of the two")
    alerts = read_alerts(thin_tables, [UNCLEAR])
    did, did_not = (alerts["message_id"].isin(said) for said in (arrived, not_arrived))
    others = ~(did | did_not)
    did, did_not = did | (others & (ALL in arrived)), did_not | (others & (ALL in not_arrived))
    record(thin_tables, alerts.loc[did], state=SENT, sent_at=datetime.now(UTC), note="a person says that it arrived")
    record(
        thin_tables,
        alerts.loc[did_not],
        state=WAITING,
        note="a person says that it did not arrive",
        next_attempt_at=None,
    )


def resting(alerts: pd.DataFrame, now: datetime) -> bool:
    """Whether the receiver of these alerts failed lately, and is left alone."""
    return any(time > now for time in alerts["next_attempt_at"].dropna())


def due(thin_tables: ThinTables, now: datetime) -> str:
    """What a run would send now, in words that are others after each attempt; empty when nothing."""
    told = []
    for receiver, alerts in read_alerts(thin_tables).groupby("receiver"):
        to_send = alerts.loc[alerts["state"] != UNCLEAR]
        if len(to_send) and not resting(alerts, now):
            since = max([*to_send["matched_at"], *to_send["next_attempt_at"].dropna()])
            told.append(f"alerts wait for {receiver} ({len(to_send)}) since {since.isoformat()}")
    return ", ".join(told)
