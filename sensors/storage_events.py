"""Object store events about image files → ingest_images, for just these files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import dagster as dg

from image_assets.data.folder_changes import folder_changes, require_plausible
from image_assets.data.image_files import read_ledger
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import to_url_path
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.files.s3 import QueueMessage, StorageEvents
from sensors.attempts import RequestKey, next_request, read_state
from sensors.new_images import JOB_NAME, JOB_NAMES

MAX_MESSAGES = 300  # per run: a tick has a minute and checks every object that they name


@dataclass(frozen=True)
class PendingRequest:
    """The last request: a run that checks these files, and the messages to delete once it succeeds."""

    run_key: str = ""
    paths: list[str] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "PendingRequest":
        """The request that the cursor holds; an empty one for no cursor."""
        if not cursor:
            return cls()
        values = json.loads(cursor)
        return cls(values["asked"], values["paths"], values["receipts"])

    def to_cursor(self) -> str:
        """The inverse of `from_cursor`."""
        return json.dumps({"asked": self.run_key, "paths": self.paths, "receipts": self.receipts})

    def to_result(self) -> dg.SensorResult:
        """The tick's result that requests the run."""
        config = {"ops": {"raw_images": {"config": {"paths": self.paths}}}}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=self.run_key, run_config=config)], cursor=self.to_cursor()
        )


@dataclass(frozen=True)
class SortedMessages:
    """Messages by what to do with them."""

    changed: dict[QueueMessage, list[str]]  # with the paths of files that differ from the ledger: ingest
    unchanged: list[QueueMessage]  # about files that the ledger already has, or outside the landing folder: delete
    waiting: int  # about files that may still be being written, or not about files: leave in the queue
    doubt: str = ""  # why messages about missing files stay in the queue


def sort_messages(
    messages: Sequence[QueueMessage], image_folder: ImageFolder, delta_tables: DeltaTables
) -> SortedMessages:
    """Compares the files that the messages name with the ledger."""
    landing = f"{image_folder.path}/"
    paths_by_message = {
        message: [path for path in map(to_url_path, message.addresses) if path.startswith(landing)]
        for message in messages
        if message.addresses is not None
    }
    paths = {path for message_paths in paths_by_message.values() for path in message_paths}
    if not paths:
        return SortedMessages({}, list(paths_by_message), len(messages) - len(paths_by_message))
    changes = folder_changes(image_folder, read_ledger(delta_tables), part=None, only=paths)
    to_read = {file.path for file in changes.to_read}
    unsettled = to_read - {file.path for file in image_folder.old_enough(changes.to_read)}
    held_back, doubt = unsettled, ""
    try:
        require_plausible(changes, image_folder, delta_tables)
    except FolderUnavailable as error:
        held_back, doubt = unsettled | set(changes.missing), str(error)
    irregular = [file.path for file in changes.irregular] + [decision.path for decision in changes.unreadable]
    different = {*to_read, *changes.missing, *irregular}
    settled = {message: found for message, found in paths_by_message.items() if held_back.isdisjoint(found)}
    changed = {message: found for message, found in settled.items() if not different.isdisjoint(found)}
    unchanged = [message for message in settled if message not in changed]
    return SortedMessages(changed, unchanged, len(messages) - len(settled), doubt)


def storage_events(*, on: bool) -> dg.SensorDefinition:
    """The sensor of the event queue; `on` says whether it runs by default."""

    @dg.sensor(
        job_name=JOB_NAME,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        description="Ingests the image files named in the object store's events.",
    )
    def storage_events(
        context: dg.SensorEvaluationContext, events: StorageEvents, image_folder: ImageFolder, delta_tables: DeltaTables
    ) -> dg.SensorResult | dg.SkipReason:
        """Requests a run for the files that messages name, and deletes the messages once it has succeeded."""
        if not events.queue:
            return dg.SkipReason("No queue is configured: set IMAGE_ASSETS_EVENTS.")
        pending = PendingRequest.from_cursor(context.cursor)
        state = read_state(
            context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=pending.run_key or None
        )
        if pending.receipts and state.status is not dg.DagsterRunStatus.SUCCESS:
            request = next_request(state, state.key.digest) if state.status else state.key
            if isinstance(request, RequestKey):
                return replace(pending, run_key=str(request)).to_result()
            return dg.SkipReason(f"{len(pending.receipts):,} messages are waiting. {request}")
        if state.active_run_id:
            return dg.SkipReason(f"Messages stay in the queue. {next_request(state, '')}")
        if pending.receipts and not state.by_another_run:  # which may have ingested other files: they arrive again
            events.delete(pending.receipts)
        try:
            messages = sort_messages(events.receive(MAX_MESSAGES), image_folder, delta_tables)
        except FolderUnavailable as error:
            return dg.SkipReason(f"Messages stay in the queue. {error}")
        events.delete([message.receipt for message in messages.unchanged])
        done = PendingRequest(str(state.key.without_digest()))
        summary = (
            f"{len(messages.unchanged):,} messages without changes deleted, {messages.waiting:,} left in the queue."
            f" {messages.doubt}"
        ).rstrip()
        if not messages.changed:
            return dg.SensorResult(skip_reason=summary, cursor=done.to_cursor())
        paths = sorted({path for message_paths in messages.changed.values() for path in message_paths})
        digest = sha256("\n".join(paths).encode()).hexdigest()[:32]
        request = next_request(replace(state, key=state.key.without_digest()), digest)
        if isinstance(request, RequestKey):
            receipts = [message.receipt for message in messages.changed]
            return PendingRequest(str(request), paths, receipts).to_result()
        return dg.SensorResult(skip_reason=f"{summary} {request}", cursor=done.to_cursor())

    return storage_events
