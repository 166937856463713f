"""Image files landed → ingest_images."""

import dagster as dg

from image_assets.news import taken_in
from resources.file_system import fingerprint
from resources.image_folder import ImageFolder
from sensors.attempts import Asked, next_request, to_known

JOB_NAME = "ingest_images"


@dg.sensor(job_name=JOB_NAME, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def new_images(context: dg.SensorEvaluationContext, image_folder: ImageFolder) -> dg.SensorResult | dg.SkipReason:
    """Ingest when files land in the image folder, change or leave it, and again when that failed."""
    try:
        files = image_folder.list_files()
    except FileNotFoundError as error:
        return dg.SkipReason(str(error))
    current = fingerprint(image_folder.old_enough(files))
    ingested = taken_in(context.instance)
    if not files and ingested is None:
        return dg.SkipReason(f"{image_folder.root} holds no image file yet")
    known = to_known(context.instance, sensor_name=context.sensor_name, job_name=JOB_NAME, cursor=context.cursor)
    if current == ingested:
        reason = f"nothing new among {len(files):,} files in {image_folder.root}"
        return dg.SensorResult(skip_reason=reason, cursor=str(known.asked.forgotten()))
    request = next_request(known, current)
    if isinstance(request, Asked):
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=str(request))], cursor=str(request))
    return dg.SkipReason(f"{len(files):,} files in {image_folder.root}; {request}")
