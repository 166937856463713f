"""Quarantined files judged again, and a table of what came of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

import pyarrow.compute as pc

from image_assets.data.image_files import Known, read_known
from image_assets.data.limits import to_limits
from image_assets.data.reading import append_new, chunked, decide
from image_assets.file_states import QUARANTINED
from image_assets.schemas import IMAGE_FILES, REPLAYED_FILES
from resources.delta_tables import DeltaTables
from resources.image_folder import ImageFolder
from resources.thin_tables import ThinTables


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
    before = said_of(delta_tables.thin, chosen)
    look_at = image_folder.list_names().look_at
    files = [file for name in chosen if (file := look_at(name)) and file.regular]
    for chunk in chunked(files):
        look = append_new(delta_tables, chunk, known, to_limits(image_folder))
        decide(delta_tables, image_folder, chunk, look.raw_images_version)
    now, time = said_of(delta_tables.thin, chosen), datetime.now(UTC)
    rows = [(path, before[path]["reason"], before[path]["message"], *said.values(), time) for path, said in now.items()]
    delta_tables.append(delta_tables.spark.createDataFrame(rows, REPLAYED_FILES.columns), REPLAYED_FILES)
    return len(chosen)


def said_of(thin_tables: ThinTables, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the ledger says of the files, by path: state, reason, message, attempts."""
    columns = ["path", "state", "reason", "message", "attempts"]
    rows = thin_tables.read(IMAGE_FILES, columns, pc.field("path").isin(paths)).to_pylist()
    return {row.pop("path"): row for row in rows}
