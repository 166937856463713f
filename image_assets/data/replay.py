"""Quarantined files judged again, and a table of what came of it."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from urllib.parse import unquote

from pyspark.sql import functions as F

from image_assets.data.image_files import Known, read_known
from image_assets.data.judging import QUARANTINED
from image_assets.data.limits import to_limits
from image_assets.data.reading import append_new, chunked, decide, take_up
from image_assets.schemas import IMAGE_FILES, REPLAYED_FILES
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder

BEFORE = "path string, reason_before string, message_before string"


def quarantined(known: Mapping[str, Known], landing: str, *, reason: str, path: str) -> list[str]:
    """The paths of the quarantined files whose reason and path below the landing folder match the patterns."""

    def matches(name: str, file: Known) -> bool:
        below = unquote(name.removeprefix(f"{landing}/"))
        return fnmatchcase(file.reason or "", reason or "*") and fnmatchcase(below, path or "*")

    return sorted(name for name, file in known.items() if file.state == QUARANTINED and matches(name, file))


def replay(delta_tables: DeltaTables, image_folder: ImageFolder, *, reason: str, path: str) -> int:
    """Judge again, by today's limits, the quarantined files that match; how many there were.

    What is an image now gets its rows; replayed_files gets a row for each file, with what was said of it before.
    """
    known = read_known(delta_tables.thin)
    chosen = quarantined(known, image_folder.path, reason=reason, path=path)
    if not chosen:
        return 0
    rows = delta_tables.read(IMAGE_FILES).join(
        F.broadcast(delta_tables.spark.createDataFrame([(name,) for name in chosen], "path string")), on="path"
    )
    before = delta_tables.spark.createDataFrame(
        [tuple(row) for row in rows.select("path", "reason", "message").collect()], BEFORE
    )
    look_at = image_folder.list_names().look_at
    files = [file for name in chosen if (file := look_at(name)) and file.regular]
    for chunk in chunked(files):
        append_new(delta_tables, chunk, known, to_limits(image_folder))
        take_up(delta_tables)
        decide(delta_tables, image_folder, chunk)
    now = delta_tables.read(IMAGE_FILES).select("path", "state", "reason", "message", "attempts")
    replayed = before.join(now, on="path", how="inner").withColumn("replayed_at", F.current_timestamp())
    delta_tables.append(replayed, REPLAYED_FILES)
    return len(chosen)
