"""Files in the landing folder or rows of the label table changed → ingest_images."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import dagster as dg

from image_assets.data.folder_changes import FolderChanges, folder_changes, require_plausible, without_unsettled
from image_assets.data.given_labels import label_table_change
from image_assets.data.image_files import read_ledger
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.files.image_folder import FolderUnavailable, ImageFolder
from sensors.attempts import ACTIVE, RequestKey, next_request, read_state

JOB_NAME = "ingest_images"
# The jobs that read the landing folder: while one of them runs, the sensor requests nothing.
JOB_NAMES = (JOB_NAME, "whole_path", "replay_quarantine")
MAX_WAIT_SECONDS = 5.0  # in a tick, for files to settle; as long as the daemon waits between two ticks
# A run can fail after it has recorded the files, so an unchanged folder does not mean that its work is done.
UNFINISHED = (dg.DagsterRunStatus.FAILURE, *ACTIVE)


def parse_cursor(cursor: str | None) -> tuple[int, str | None]:
    """The slice of known files to check next, and the last request; the inverse of `to_cursor`."""
    part, _, key = (cursor or "").partition(" ")
    return (int(part), key) if part.isdecimal() else (0, cursor)


def to_cursor(part: int, key: RequestKey) -> str:
    """The cursor for the next tick."""
    return f"{part} {key}"


def to_request(key: RequestKey, part: int) -> dg.RunRequest:
    """A run that re-checks the slice in which the changes were found."""
    config = {"ops": {"raw_images": {"config": {"part": part}}}}
    return dg.RunRequest(run_key=str(key), run_config=config)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turns Python's garbage collector off: it would take a third of the time that creating 100,000 rows takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def new_images_every(seconds: int) -> dg.SensorDefinition:
    """The sensor that lists the landing folder, at most once in so many seconds."""

    @dg.sensor(
        job_name=JOB_NAME,
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ingests images when files are added, changed or deleted, or when the label table changes.",
    )
    def new_images(
        context: dg.SensorEvaluationContext,
        image_folder: ImageFolder,
        label_table: ExternalTable,
        delta_tables: DeltaTables,
    ) -> dg.SensorResult | dg.SkipReason:
        """Requests a run for each change of the landing folder or the label table, and retries failed runs."""
        return request_ingest(context, image_folder, label_table, delta_tables)

    return new_images


def settled_changes(image_folder: ImageFolder, delta_tables: DeltaTables, part: int) -> FolderChanges:
    """The changes that are ready to be ingested.

    If files that may still be written to are all that there is, waits until one has settled: the next tick would find
    it later.
    """
    until = time.monotonic() + MAX_WAIT_SECONDS
    while True:
        with no_garbage_collection():
            found = folder_changes(image_folder, read_ledger(delta_tables), part)
        require_plausible(found, image_folder, delta_tables)
        changes = without_unsettled(found, image_folder)
        seconds = image_folder.seconds_until_old_enough(found.to_read)
        if changes.digest() or not changes.unsettled or time.monotonic() + seconds > until:
            return changes
        time.sleep(max(0.0, seconds))


def request_ingest(
    context: dg.SensorEvaluationContext,
    image_folder: ImageFolder,
    label_table: ExternalTable,
    delta_tables: DeltaTables,
) -> dg.SensorResult | dg.SkipReason:
    """One tick: compares the landing folder and the label table with what has been ingested."""
    part, cursor = parse_cursor(context.cursor)
    try:
        changes = settled_changes(image_folder, delta_tables, part)
    except FolderUnavailable as error:
        return dg.SkipReason(str(error))
    try:
        labels = label_table_change(context.instance, label_table)
    except (FileNotFoundError, ValueError) as error:
        return dg.SkipReason(str(error))
    summary = f"{image_folder.root}: {changes}." + (f" Label table: {labels}." if labels else "")
    state = read_state(context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=cursor)
    if state.by_another_run:  # it may have read other files only: any that are left count as a change
        state = replace(state, key=state.key.without_digest())
    digest = changes.digest() if not labels else sha256(f"{changes.digest()} {labels}".encode()).hexdigest()[:32]
    # Each tick checks the next slice. While there is work to do the slice stays, because the run re-checks that slice.
    next_part = part if digest else part + 1
    if not digest and state.status not in UNFINISHED:
        return dg.SensorResult(skip_reason=summary, cursor=to_cursor(next_part, state.key.without_digest()))
    request = next_request(state, digest or state.key.digest)
    if isinstance(request, RequestKey):
        return dg.SensorResult(run_requests=[to_request(request, part)], cursor=to_cursor(part, request))
    return dg.SensorResult(skip_reason=f"{summary} {request}", cursor=to_cursor(next_part, state.key))
