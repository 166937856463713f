"""An object store told of image files → ingest_images, which looks at these files only."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256

import dagster as dg

from image_assets.data.folder_changes import folder_changes
from image_assets.data.image_files import read_known
from resources import object_storage
from resources.image_folder import ImageFolder
from resources.storage_events import Message, StorageEvents
from resources.thin_tables import ThinTables
from sensors.attempts import Asked, next_request, to_known
from sensors.new_images import JOB_NAME, JOB_NAMES

MOST_MESSAGES = 300  # that one run answers; a tick has a minute, and looks at each of their objects


@dataclass(frozen=True)
class Pending:
    """What the sensor asked for last: a run that looks at these files, and the messages that are deleted then."""

    asked: str = ""
    paths: list[str] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, cursor: str | None) -> "Pending":
        """What the cursor says."""
        return cls(**json.loads(cursor)) if cursor else cls()

    def to_cursor(self) -> str:
        """The reverse."""
        return json.dumps(asdict(self))

    def request(self) -> dg.SensorResult:
        """The run."""
        config = {"ops": {"raw_images": {"config": {"paths": self.paths}}}}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=self.asked, run_config=config)], cursor=self.to_cursor()
        )


@dataclass(frozen=True)
class Told:
    """What messages told of the landing folder, in files as the tables spell them."""

    new: dict[Message, list[str]]  # of files that are not as the ledger says
    known: list[Message]  # of nothing that is to be done
    waiting: int  # of files that may still be written, or of something else: they stay in the queue


def told(messages: Sequence[Message], image_folder: ImageFolder, thin_tables: ThinTables) -> Told:
    """Look at the files that the messages tell of, and at what the ledger says of them."""
    landing = f"{image_folder.path}/"
    understood = {
        message: [path for path in map(object_storage.to_path, message.addresses) if path.startswith(landing)]
        for message in messages
        if message.addresses is not None
    }
    paths = {path for of_message in understood.values() for path in of_message}
    found = folder_changes(image_folder, read_known(thin_tables), part=None, only=paths) if paths else None
    read = found.to_read if found else ()
    young = {file.path for file in read} - {file.path for file in image_folder.old_enough(read)}
    other = {file.path for file in read} | (
        {*found.missing, *(file.path for file in found.irregular)} if found else set()
    )
    ready = {message: of_message for message, of_message in understood.items() if young.isdisjoint(of_message)}
    new = {message: of_message for message, of_message in ready.items() if not other.isdisjoint(of_message)}
    return Told(new, [message for message in ready if message not in new], len(messages) - len(ready))


def storage_events(*, on: bool) -> dg.SensorDefinition:
    """The sensor of a queue; it runs by itself where there is one."""

    @dg.sensor(
        name="storage_events",
        job_name=JOB_NAME,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        description="An object store told of image files in its events: take these in.",
    )
    def look(
        context: dg.SensorEvaluationContext, events: StorageEvents, image_folder: ImageFolder, thin_tables: ThinTables
    ) -> dg.SensorResult | dg.SkipReason:
        """Ingest the files that messages tell of. They are deleted once a run took the files in."""
        if not events.queue:
            return dg.SkipReason("no queue is named: set IMAGE_ASSETS_EVENTS")
        pending = Pending.read(context.cursor)
        known = to_known(
            context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=pending.asked or None
        )
        if pending.receipts and known.status is not dg.DagsterRunStatus.SUCCESS:
            request = next_request(known, known.asked.digest) if known.status else known.asked
            if isinstance(request, Asked):
                return replace(pending, asked=str(request)).request()
            return dg.SkipReason(f"{len(pending.receipts):,} messages: {request}")
        if known.active_run_id:
            return dg.SkipReason(f"messages stay in the queue: {next_request(known, '')}")
        if pending.receipts:
            events.delete(pending.receipts)
        heard = told(events.receive(MOST_MESSAGES), image_folder, thin_tables)
        events.delete([message.receipt for message in heard.known])
        done = Pending(str(known.asked.forgotten()))
        said = f"{len(heard.known):,} messages tell nothing new, {heard.waiting:,} stay in the queue for now"
        if not heard.new:
            return dg.SensorResult(skip_reason=said, cursor=done.to_cursor())
        paths = sorted({path for of_message in heard.new.values() for path in of_message})
        digest = sha256("\n".join(paths).encode()).hexdigest()[:32]
        request = next_request(replace(known, asked=known.asked.forgotten()), digest)
        if isinstance(request, Asked):
            return Pending(str(request), paths, [message.receipt for message in heard.new]).request()
        return dg.SensorResult(skip_reason=f"{said}; {request}", cursor=done.to_cursor())

    return look
