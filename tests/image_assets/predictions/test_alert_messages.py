"""Many alerts are few messages, each alert is in one of them, and a message says the same whenever it is sent."""

import pandas as pd
import pytest

from image_assets.predictions.alert_sending import MESSAGES, Message, to_messages
from tests.support.alert_run import NOON

ROOM = 1000


def waiting(count: int, rule: str = "sure roses", **more: object) -> pd.DataFrame:
    """Alerts that wait."""
    return pd.DataFrame(
        {
            "path": [f"file:/photos/{number:05}.jpg" for number in range(count)],
            "image_id": "1",
            "model_name": "image_classifier",
            "model_version": 3,
            "version_id": "3",
            "rule": rule,
            "receiver": "oncall",
            "label": "roses",
            "probability": [0.5 + number / count / 2 for number in range(count)],
            "matched_at": NOON,
            "message_id": None,
            "attempts": 0,
            **more,
        }
    )


def messages(alerts: pd.DataFrame, room: int = ROOM) -> list[Message]:
    return list(to_messages(alerts, room))


def test_a_message_names_rule_label_probability_version_and_path_the_most_confident_first() -> None:
    (message,) = messages(waiting(2))
    assert message.title == "sure roses: 2 predictions"
    assert message.text.splitlines() == [
        "roses 75.0%, version 3, file:/photos/00001.jpg",
        "roses 50.0%, version 3, file:/photos/00000.jpg",
        f"message_id {message.message_id}",
    ]


def test_what_does_not_fit_goes_into_more_messages() -> None:
    found = messages(waiting(100))
    assert 1 < len(found) < MESSAGES
    assert all(len(message.text) <= ROOM for message in found)
    lines = [line for message in found for line in message.text.splitlines() if line.startswith("roses")]
    assert len(set(lines)) == len(lines) == 100
    assert len({message.message_id for message in found}) == len(found)


def test_a_flood_is_ten_messages_of_which_the_last_counts_the_rest() -> None:
    found = messages(waiting(10_000))
    assert len(found) == MESSAGES
    assert sum(len(message.alerts) for message in found) == 10_000
    assert all(len(message.text) <= ROOM for message in found)
    named = sum(message.text.count("roses ") for message in found)
    assert f"and {10_000 - named:,} more, listed in prediction_alerts under this message_id" in found[-1].text


@pytest.mark.parametrize("room", [0, 160])
def test_a_service_with_little_room_gets_at_least_one_line(room: int) -> None:
    assert [message.text.count("roses ") for message in messages(waiting(3), room)] == [1, 1, 1]


def test_rules_are_told_apart() -> None:
    alerts = pd.concat([waiting(2, "sure roses"), waiting(3, "unsure")])
    assert [message.title for message in messages(alerts)] == ["sure roses: 2 predictions", "unsure: 3 predictions"]


def test_a_message_that_was_tried_comes_first_and_says_the_same() -> None:
    first = messages(waiting(100))[0]
    tried = first.alerts.sample(frac=1, random_state=1).assign(message_id=first.message_id, attempts=2)
    again, *others = messages(pd.concat([waiting(3, "a newer rule"), tried]))
    assert (again.message_id, again.title, again.text) == (first.message_id, first.title, first.text)
    assert (again.attempts, len(others)) == (2, 1)
