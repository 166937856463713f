"""S3 event notifications about new, changed and deleted objects, received from an SQS queue."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import dagster as dg
from pydantic import Field

BATCH_SIZE = 10  # SQS's limit for one request
AMAZON_QUEUE_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com")


@dataclass(frozen=True)
class QueueMessage:
    """A message with the URLs of its objects, or None if it is not an S3 event."""

    receipt: str
    addresses: tuple[str, ...] | None


class StorageEvents(dg.ConfigurableResource):
    """The queue that receives the events of the landing folder's bucket, if there is one."""

    queue: str = Field(default="", description="The URL of the SQS queue. The account comes from `AWS_…` variables.")

    def receive(self, limit: int) -> list[QueueMessage]:
        """Receives up to about `limit` messages. Messages that are not deleted are delivered again later."""
        client = self._client()
        messages: dict[str, QueueMessage] = {}
        while len(messages) < limit:
            response = client.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=BATCH_SIZE, WaitTimeSeconds=0)
            found = {
                message["MessageId"]: QueueMessage(message["ReceiptHandle"], to_addresses(message["Body"]))
                for message in response.get("Messages", [])
            }
            new = found.keys() - messages.keys()
            messages |= found
            if not new:  # the queue is empty, or it repeats messages
                break
        return list(messages.values())

    def delete(self, receipts: Sequence[str]) -> None:
        """Deletes messages. Messages that were delivered again in the meantime stay in the queue."""
        client = self._client()
        for first in range(0, len(receipts), BATCH_SIZE):
            batch = receipts[first : first + BATCH_SIZE]
            entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(batch)]
            client.delete_message_batch(QueueUrl=self.queue, Entries=entries)

    def _client(self) -> Any:  # botocore creates client methods at run time
        import boto3

        found = AMAZON_QUEUE_URL.match(self.queue)
        return boto3.client("sqs", region_name=found[1] if found else None)


def to_addresses(body: str) -> tuple[str, ...] | None:
    """The URLs of the new, changed and deleted objects in a message; None if it is not an S3 event.

    S3 sends events to SQS directly, through an SNS topic, or through EventBridge.
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
    """The buckets and keys of an event; raises KeyError and the like if it is not an event."""
    if "detail" in content:  # EventBridge does not escape keys
        yield content["detail"]["bucket"]["name"], content["detail"]["object"]["key"]
        return
    for event in content["Records"]:
        yield event["s3"]["bucket"]["name"], unquote_plus(event["s3"]["object"]["key"])
