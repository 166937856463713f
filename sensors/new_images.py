"""Image files landed → ingest_images."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import dagster as dg

from image_assets.data.folder_changes import folder_changes, without_writing
from image_assets.data.given_labels import label_table_news
from image_assets.data.image_files import read_known
from resources.image_folder import ImageFolder
from resources.outside_table import OutsideTable
from resources.thin_tables import ThinTables
from sensors.attempts import ACTIVE, Asked, next_request, to_known

JOB_NAME = "ingest_images"
# What else reads the landing folder: while one of these goes on, nothing is asked for.
JOB_NAMES = (JOB_NAME, "whole_path", "replay_quarantine")
# A run may fail when the files are taken in already: what follows has to be done all the same.
UNFINISHED = (dg.DagsterRunStatus.FAILURE, *ACTIVE)


def to_part(cursor: str | None) -> tuple[int, str | None]:
    """The part of the known files whose turn it is, and what was asked for last; the reverse of `to_cursor`."""
    part, _, asked = (cursor or "").partition(" ")
    return (int(part), asked) if part.isdecimal() else (0, cursor)


def to_cursor(part: int, asked: Asked) -> str:
    """What the next tick has to know."""
    return f"{part} {asked}"


def to_request(asked: Asked, part: int) -> dg.RunRequest:
    """A run that looks at the part in which the changes were found."""
    config = {"ops": {"raw_images": {"config": {"part": part}}}}
    return dg.RunRequest(run_key=str(asked), run_config=config)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Let Python not look for garbage, which takes a third of the time that making a hundred thousand rows takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def new_images_every(seconds: int) -> dg.SensorDefinition:
    """The sensor that lists the landing folder, so often at most."""

    @dg.sensor(
        name="new_images",
        job_name=JOB_NAME,
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Image files landed, changed or left, or the label table changed: take it in.",
    )
    def look(
        context: dg.SensorEvaluationContext,
        image_folder: ImageFolder,
        label_table: OutsideTable,
        thin_tables: ThinTables,
    ) -> dg.SensorResult | dg.SkipReason:
        """Ingest when files land in the image folder, change or leave it, or labels change; again when that failed."""
        return changes_found(context, image_folder, label_table, thin_tables)

    return look


def changes_found(
    context: dg.SensorEvaluationContext, image_folder: ImageFolder, label_table: OutsideTable, thin_tables: ThinTables
) -> dg.SensorResult | dg.SkipReason:
    """What a look at the folder and at the label table comes to."""
    part, asked = to_part(context.cursor)
    try:
        with no_garbage_collection():
            found = folder_changes(image_folder, read_known(thin_tables), part)
        labels = label_table_news(context.instance, label_table)
    except FileNotFoundError as error:
        return dg.SkipReason(str(error))
    changes = without_writing(found, image_folder)
    said = f"{image_folder.root}: {changes}" + (f"; the label table: {labels}" if labels else "")
    known = to_known(context.instance, sensor_name=context.sensor_name, job_names=JOB_NAMES, cursor=asked)
    digest = changes.digest() if not labels else sha256(f"{changes.digest()} {labels}".encode()).hexdigest()[:32]
    # The next tick looks at the next part. While something is to be done, the part stays: a run looks there.
    next_part = part if digest else part + 1
    if not digest and known.status not in UNFINISHED:
        return dg.SensorResult(skip_reason=said, cursor=to_cursor(next_part, known.asked.forgotten()))
    request = next_request(known, digest or known.asked.digest)
    if isinstance(request, Asked):
        return dg.SensorResult(run_requests=[to_request(request, part)], cursor=to_cursor(part, request))
    return dg.SensorResult(skip_reason=f"{said}; {request}", cursor=to_cursor(next_part, known.asked))
