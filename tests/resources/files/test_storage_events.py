"""Tests of S3 event messages, in every form in which a queue can receive them."""

import json
from collections.abc import Iterator

import boto3
import pytest

from resources.files.s3 import StorageEvents, to_addresses
from tests.support.s3_server import BUCKET, s3_server


def event(*keys: str) -> dict:
    """What S3 sends, less what nobody reads."""
    return {"Records": [{"eventName": "x", "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}} for key in keys]}


@pytest.mark.parametrize(
    ("body", "addresses"),
    [
        (event("photos/a+b%23%C3%A9.png", "c.png"), ("photos/a b#é.png", "c.png")),
        ({"Type": "Notification", "Message": json.dumps(event("a.png"))}, ("a.png",)),
        ({"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": "a+b%.png"}}}, ("a+b%.png",)),
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET}, ()),
        ({"Records": [{"kinesis": {}}]}, None),
        ({"order": 7}, None),
        ([], None),
        (3, None),
    ],
)
def test_each_form_of_an_event_names_its_objects(body: object, addresses: tuple[str, ...] | None) -> None:
    expected = None if addresses is None else tuple(f"s3://{BUCKET}/{key}" for key in addresses)
    assert to_addresses(json.dumps(body)) == expected


def test_a_message_that_is_not_json_is_not_an_event() -> None:
    assert to_addresses("hello") is None


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield boto3.client("sqs").create_queue(QueueName="events")["QueueUrl"]


def test_messages_stay_until_they_are_deleted(queue: str) -> None:
    client, events = boto3.client("sqs"), StorageEvents(queue=queue)
    client.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "0"})
    for number in range(25):
        client.send_message(QueueUrl=queue, MessageBody=json.dumps(event(f"{number}.png")))
    assert len(events.receive(10)) == 10
    client.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "60"})
    messages = events.receive(1000)
    assert {address for message in messages for address in message.addresses or ()} == {
        f"s3://{BUCKET}/{number}.png" for number in range(25)
    }
    assert events.receive(1000) == []
    events.delete([message.receipt for message in messages])
    attributes = client.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    waiting = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    assert [attributes[name] for name in waiting] == ["0", "0"]
