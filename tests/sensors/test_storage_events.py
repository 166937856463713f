"""Objects named in events are ingested once; messages are deleted after a run has ingested their files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import dagster as dg
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType
from s3fs import S3FileSystem

from image_assets.data.folder_changes import folder_changes, require_plausible
from image_assets.data.image_files import read_ledger
from image_assets.data.raw_images import IngestConfig
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.s3 import StorageEvents
from scripts.cluster import HOST, free_port
from sensors.attempts import ATTEMPTS
from sensors.storage_events import PendingRequest, storage_events
from tests.support.images import png
from tests.support.s3_server import BUCKET, s3_server
from tests.support.tables import tables_at

sensor = storage_events(on=True)


@dg.op
def raw_images(
    context: dg.OpExecutionContext, config: IngestConfig, image_folder: ImageFolder, delta_tables: DeltaTables
) -> None:
    """Updates the ledger as the asset of this name does, or fails on purpose."""
    if context.run.tags.get("fails"):
        raise ValueError("no Spark")
    known = read_ledger(delta_tables)
    changes = folder_changes(image_folder, known, config.part, config.paths)
    assert changes.listed == len(config.paths) - len(changes.missing), "nothing else is checked"
    names = ("state", "reason", "image_id", "length", "modification_time")
    rows = {row["path"]: row for row in delta_tables.read(IMAGE_FILES, ["path", *names]).to_pylist()}
    for file in changes.to_read:
        values = ("current", None, None, file.length, file.modification_time)
        rows[file.path] = {"path": file.path, **dict(zip(names, values, strict=True))}
    for path in changes.missing:
        rows[path]["state"] = "missing"
    schema = to_arrow_schema(StructType([IMAGE_FILES.columns[name] for name in ("path", *names)]))
    table = pa.Table.from_pylist(list(rows.values()), schema)
    write_deltalake(f"{delta_tables.root}/image_files", table, mode="overwrite")


@dg.job
def ingest_images() -> None:
    raw_images()


class Daemon:
    """What Dagster's daemon does with the sensor, and a bucket that sends its events to a queue."""

    def __init__(self, home: Path) -> None:
        self.s3, self.sqs = boto3.client("s3"), boto3.client("sqs")
        self.queue = self.sqs.create_queue(QueueName="events", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        wanted = [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}]
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": wanted}
        )
        self.instance = dg.DagsterInstance.ephemeral()
        self.resources = {
            "events": StorageEvents(queue=self.queue),
            "image_folder": ImageFolder(root=f"s3://{BUCKET}/photos", settle_seconds=0),
            "delta_tables": tables_at(home / "tables"),
        }
        self.cursor: str | None = None
        self.run_keys: list[str] = []

    def put(self, key: str, number: int) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=png(number))

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, sensor_name="storage_events", resources=self.resources
        ) as context:
            answer = sensor(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
        return answer

    def run(self, config: Mapping | None, tags: dict[str, str]) -> None:
        resources = {name: self.resources[name] for name in ("image_folder", "delta_tables")}
        ingest_images.execute_in_process(
            instance=self.instance, run_config=config, resources=resources, tags=tags, raise_on_error=False
        )

    def launched(self, *, fails: bool = False) -> list[str]:
        """The files that a tick launched a run for, below the landing folder."""
        answer = self.tick()
        requests = (answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
        fresh = [request for request in requests if request.run_key not in self.run_keys]
        files = []
        for request in fresh:
            assert request.run_key
            self.run_keys.append(request.run_key)
            tags = {"dagster/run_key": request.run_key, "dagster/sensor_name": "storage_events"}
            self.run(request.run_config, tags | ({"fails": "yes"} if fails else {}))
            files += request.run_config["ops"]["raw_images"]["config"]["paths"]
        return [path.removeprefix(f"s3://{BUCKET}/photos/") for path in files]

    def waiting(self) -> int:
        """How many messages the queue holds."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["All"])["Attributes"]
        return sum(int(attributes[name]) for name in names)


@pytest.fixture
def daemon(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield Daemon(home)


def reason(answer: dg.SensorResult | dg.SkipReason) -> str:
    skip = answer.skip_reason if isinstance(answer, dg.SensorResult) else answer
    return (skip.skip_message if isinstance(skip, dg.SkipReason) else skip) or ""


def test_added_changed_and_deleted_objects_are_ingested_once(daemon: Daemon) -> None:
    assert daemon.launched() == []
    daemon.put("photos/roses/a b.png", 1)
    daemon.put("photos/roses/100%25.png", 2)
    daemon.put("photos/notes.txt", 3)
    daemon.put("photos//d.png", 6)
    daemon.put("elsewhere/c.png", 4)
    assert daemon.launched() == ["/d.png", "roses/100%2525.png", "roses/a b.png"]
    assert daemon.launched() == []
    assert daemon.waiting() == 0
    daemon.put("photos/roses/a b.png", 5)
    assert [daemon.launched(), daemon.launched()] == [["roses/a b.png"], []]
    daemon.s3.delete_object(Bucket=BUCKET, Key="photos/roses/a b.png")
    assert [daemon.launched(), daemon.launched()] == [["roses/a b.png"], []]
    assert daemon.waiting() == 0


def test_messages_about_many_deleted_objects_stay_until_a_run_accepts_that_they_are_missing(daemon: Daemon) -> None:
    daemon.sqs.set_queue_attributes(QueueUrl=daemon.queue, Attributes={"VisibilityTimeout": "60"})
    keys = [f"photos/{number:02}.png" for number in range(30)]
    for number, key in enumerate(keys):
        daemon.put(key, number)
    assert len(daemon.launched()) == 30
    for key in keys[:21]:
        daemon.s3.delete_object(Bucket=BUCKET, Key=key)
    assert "21 left in the queue. 21 of 30 current files are gone" in reason(daemon.tick())
    daemon.put("photos/new.png", 31)
    assert [daemon.launched(), daemon.launched()] == [["new.png"], []], "other changes are ingested"
    assert daemon.waiting() == 21
    paths = [f"s3://{BUCKET}/{key}" for key in keys[:21]]
    daemon.run({"ops": {"raw_images": {"config": {"paths": paths, "accept_missing": True}}}}, {})
    delta_tables = daemon.resources["delta_tables"]
    assert isinstance(delta_tables, DeltaTables)
    assert [entry.state for entry in read_ledger(delta_tables).values()].count("missing") == 21


def test_an_emptied_prefix_and_a_bucket_that_is_gone_are_not_believed(daemon: Daemon) -> None:
    image_folder, delta_tables = daemon.resources["image_folder"], daemon.resources["delta_tables"]
    assert isinstance(image_folder, ImageFolder)
    assert isinstance(delta_tables, DeltaTables)
    daemon.put("photos/a.png", 1)
    assert daemon.launched() == ["a.png"]
    daemon.s3.delete_object(Bucket=BUCKET, Key="photos/a.png")
    for gone in (lambda: None, lambda: daemon.s3.delete_bucket(Bucket=BUCKET)):
        gone()
        with pytest.raises(FolderUnavailable, match="landing folder s3://a-bucket/photos"):
            require_plausible(folder_changes(image_folder, read_ledger(delta_tables), None), image_folder, delta_tables)


def test_messages_stay_while_the_bucket_does_not_answer(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.put("photos/a.png", 1)
    with monkeypatch.context() as outage:
        outage.setenv("AWS_ENDPOINT_URL_S3", f"http://{HOST}:{free_port()}")
        outage.setenv("AWS_MAX_ATTEMPTS", "1")
        S3FileSystem.clear_instance_cache()
        assert "Messages stay in the queue. The landing folder s3://a-bucket/photos cannot" in reason(daemon.tick())
    S3FileSystem.clear_instance_cache()
    assert daemon.launched() == ["a.png"]


def test_messages_stay_until_a_run_has_ingested_their_files(daemon: Daemon) -> None:
    daemon.put("photos/a.png", 1)
    assert daemon.launched(fails=True) == ["a.png"]
    assert daemon.waiting() == 1
    daemon.put("photos/b.png", 2)
    assert [daemon.launched(fails=True) for _ in range(ATTEMPTS)] == [["a.png"]] * (ATTEMPTS - 1) + [[]]
    assert f"1 messages are waiting. {ATTEMPTS} runs failed on these changes." in reason(daemon.tick())
    daemon.run({"ops": {"raw_images": {"config": {"paths": [f"s3://{BUCKET}/photos/a.png"]}}}}, {})
    assert [daemon.launched(), daemon.launched()] == [["b.png"], []]
    assert daemon.waiting() == 0


def test_messages_stay_after_a_run_for_other_files_succeeded(daemon: Daemon) -> None:
    daemon.put("photos/a.png", 1)
    assert daemon.launched(fails=True) == ["a.png"]
    daemon.put("photos/b.png", 2)
    daemon.run({"ops": {"raw_images": {"config": {"paths": [f"s3://{BUCKET}/photos/b.png"]}}}}, {})
    assert [daemon.launched(), daemon.launched()] == [["a.png"], []]
    assert daemon.waiting() == 0


def test_a_canceled_run_holds_up_the_queue_only_until_somebody_launches_the_job(daemon: Daemon) -> None:
    daemon.put("photos/a.png", 1)
    answer = daemon.tick()
    assert isinstance(answer, dg.SensorResult)
    (request,) = answer.run_requests or []
    tags = {"dagster/run_key": str(request.run_key), "dagster/sensor_name": "storage_events"}
    daemon.instance.create_run_for_job(ingest_images, status=dg.DagsterRunStatus.CANCELED, tags=tags)
    daemon.put("photos/b.png", 2)
    assert "was canceled. To try again, launch the job" in reason(daemon.tick())
    daemon.run({"ops": {"raw_images": {"config": {"paths": [f"s3://{BUCKET}/photos/a.png"]}}}}, {})
    assert [daemon.launched(), daemon.launched()] == [["b.png"], []]
    assert daemon.waiting() == 0


def test_a_tick_that_died_before_its_run_requests_it_again(daemon: Daemon) -> None:
    daemon.put("photos/a.png", 1)
    daemon.tick()
    assert daemon.launched() == ["a.png"]
    assert daemon.launched() == []
    assert daemon.waiting() == 0


def test_a_lost_cursor_leads_to_no_second_run(daemon: Daemon) -> None:
    daemon.put("photos/a.png", 1)
    assert daemon.launched() == ["a.png"]
    daemon.cursor = None
    assert daemon.launched() == []
    assert daemon.waiting() == 0


def test_messages_stay_in_the_queue_while_a_run_is_active(daemon: Daemon) -> None:
    run = daemon.instance.create_run_for_job(ingest_images, status=dg.DagsterRunStatus.STARTED)
    daemon.put("photos/a.png", 1)
    assert f"Messages stay in the queue. Waiting for run {run.run_id}" in reason(daemon.tick())
    daemon.instance.report_run_failed(run)
    assert daemon.launched() == ["a.png"]


def test_other_messages_and_files_being_written_stay_in_the_queue(daemon: Daemon) -> None:
    daemon.sqs.send_message(QueueUrl=daemon.queue, MessageBody=json.dumps({"order": 7}))
    daemon.put("photos/a.png", 1)
    daemon.resources["image_folder"] = ImageFolder(root=f"s3://{BUCKET}/photos", settle_seconds=3600)
    assert daemon.launched() == []
    assert daemon.waiting() == 2
    daemon.resources["image_folder"] = ImageFolder(root=f"s3://{BUCKET}/photos", settle_seconds=0)
    assert daemon.launched() == ["a.png"]
    daemon.tick()
    assert daemon.waiting() == 1


def test_a_missing_queue_is_reported() -> None:
    resources = {
        "events": StorageEvents(),
        "image_folder": ImageFolder(root="/nowhere"),
        "delta_tables": tables_at("/nowhere"),
    }
    with dg.build_sensor_context(sensor_name="storage_events", resources=resources) as context:
        answer = sensor(context)
    assert isinstance(answer, dg.SkipReason)
    assert "set IMAGE_ASSETS_EVENTS" in str(answer.skip_message)


def test_the_cursor_keeps_the_format_that_homes_have_stored() -> None:
    stored = '{"asked": "0a1b.3.2", "paths": ["s3://photos/a.png"], "receipts": ["r1"]}'
    assert PendingRequest.from_cursor(stored) == PendingRequest("0a1b.3.2", ["s3://photos/a.png"], ["r1"])
    assert PendingRequest.from_cursor(stored).to_cursor() == stored
