"""Messages: alerts of one rule that are told to one receiver together."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pandas as pd

MESSAGES = 10  # of a rule to a receiver in a run; the last one counts what none has room for
OTHER_CHARACTERS = 300  # for the title and what is said below the alerts
ORDER = {"probability": False, "path": True, "model_version": False, "image_id": True}  # whether it ascends


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
