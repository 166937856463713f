"""What an object store tells of its objects: S3's events, as a queue of SQS holds them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import dagster as dg
from pydantic import Field

AT_ONCE = 10  # as many as SQS hands out or deletes by one request
AMAZON_QUEUE_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com")


@dataclass(frozen=True)
class QueueMessage:
    """A message with the addresses of the objects that it tells of; None where it tells of something else."""

    receipt: str
    addresses: tuple[str, ...] | None


class StorageEvents(dg.ConfigurableResource):
    """The queue to which an object store sends its events, or none."""

    queue: str = Field(default="", description="The URL of the queue; the account comes from `AWS_…` variables.")

    def receive(self, limit: int) -> list[QueueMessage]:
        """Messages that wait, about as many at most; until they are deleted they come again after a while."""
        client = self._client()
        messages: dict[str, QueueMessage] = {}
        while len(messages) < limit:
            answer = client.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=AT_ONCE, WaitTimeSeconds=0)
            found = {
                message["MessageId"]: QueueMessage(message["ReceiptHandle"], to_addresses(message["Body"]))
                for message in answer.get("Messages", [])
            }
            new = found.keys() - messages.keys()
            messages |= found
            if not new:  # none waits, or what was received comes again already
                break
        return list(messages.values())

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages; those that came again meanwhile stay, and come once more."""
        client = self._client()
        for first in range(0, len(receipts), AT_ONCE):
            some = receipts[first : first + AT_ONCE]
            entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(some)]
            client.delete_message_batch(QueueUrl=self.queue, Entries=entries)

    def _client(self) -> Any:  # botocore makes the methods of a client at run time
        import boto3

        found = AMAZON_QUEUE_URL.match(self.queue)
        return boto3.client("sqs", region_name=found[1] if found else None)


def to_addresses(body: str) -> tuple[str, ...] | None:
    """The objects that came, changed or went by what a message says; None where it is no event of S3.

    S3 sends events to SQS itself, by a topic of SNS, or by EventBridge.
    """
    try:
        content = json.loads(body)
        if isinstance(content.get("Message"), str):  # SNS
            content = json.loads(content["Message"])
        if content.get("Event") == "s3:TestEvent":
            return ()
        return tuple(f"s3://{bucket}/{key}" for bucket, key in objects(content))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def objects(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The buckets and keys of an event; KeyError and the like where it is none."""
    if "detail" in content:  # EventBridge's, whose keys are as they are
        yield content["detail"]["bucket"]["name"], content["detail"]["object"]["key"]
        return
    for event in content["Records"]:
        yield event["s3"]["bucket"]["name"], unquote_plus(event["s3"]["object"]["key"])
