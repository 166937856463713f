"""S3-compatible storage: Spark's settings for it, and the queue of its events.

delta-rs, fsspec and MLflow read the `AWS_…` variables themselves. Credentials are only passed from
environment to environment and are never in settings.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import dagster as dg
import pyspark
from pydantic import Field

SCHEME = "s3://"
# What a process needs to read and write; not needed if the machine or pod has a role.
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
)
UNENCRYPTED = "http://"
SPARK_READS_S3 = "spark.hadoop.fs.s3.impl"
QUEUE_BATCH = 10  # SQS's limit for one request
AMAZON_QUEUE_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com")


def require_supported_location(name: str, location: str, variables: Mapping[str, str]) -> None:
    """A ValueError unless the variable `name` contains a folder, or an S3 URL that every library can open."""
    if "://" not in location:
        return
    if not location.startswith(SCHEME):
        raise ValueError(f"{name} is {location!r}: expected a folder, or {SCHEME}<bucket>/<prefix>")
    endpoint = variables.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith(UNENCRYPTED) and variables.get("AWS_ALLOW_HTTP") != "true":
        raise ValueError(
            f"{name} is on S3, but AWS_ENDPOINT_URL begins with {UNENCRYPTED}, which is not encrypted: use an https "
            "URL, or set AWS_ALLOW_HTTP=true to accept that"
        )


def spark_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Spark's settings: S3A handles `s3://` URLs, the scheme that delta-rs and fsspec use."""
    settings = {
        SPARK_READS_S3: "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.s3.impl": "org.apache.hadoop.fs.s3a.S3A",
        # Spark's default pattern plus the variables' names: Spark hides the values of these settings.
        "spark.redaction.regex": "(?i)secret|password|token|access[._]?key",
    }
    if endpoint := variables.get("AWS_ENDPOINT_URL"):
        settings |= {"spark.hadoop.fs.s3a.endpoint": endpoint, "spark.hadoop.fs.s3a.path.style.access": "true"}
    if region := variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION"):
        settings["spark.hadoop.fs.s3a.endpoint.region"] = region
    return settings


def require_jars() -> None:
    """A FileNotFoundError if Spark's jars for S3 are missing."""
    folder = Path(pyspark.__file__).parent / "jars"
    if not any(folder.glob("*hadoop-aws-*.jar")):
        raise FileNotFoundError(f"{folder} contains no jars for S3: run `make s3` or `image-assets s3`")


def worker_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables to pass to the executors' Python processes; their JVMs get them from Spark."""
    return {name: variables[name] for name in VARIABLES if variables.get(name)}


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
            response = client.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=QUEUE_BATCH, WaitTimeSeconds=0)
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
        for first in range(0, len(receipts), QUEUE_BATCH):
            batch = receipts[first : first + QUEUE_BATCH]
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
