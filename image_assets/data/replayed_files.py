"""Quarantined files that were checked again on request, with the result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

import dagster as dg
import pyarrow.compute as pc

from image_assets.data.image_files import LedgerEntry, read_ledger
from image_assets.data.ingestion import append_new_files, chunked, decide_by_decoding, size_of, to_limits
from image_assets.data.inspection import CURRENT, QUARANTINED
from image_assets.schemas import IMAGE_FILES, REPLAYED_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.executors import executor_for
from resources.delta.parquet_files import write_files
from resources.delta.table import Snapshot, file_layout
from resources.files.image_folder import ImageFolder


def matching_quarantined(ledger: Mapping[str, LedgerEntry], landing: str, *, reason: str, path: str) -> list[str]:
    """The paths of the quarantined files whose reason and path in the landing folder match the patterns."""

    def matches(name: str, file: LedgerEntry) -> bool:
        below = unquote(name.removeprefix(f"{landing}/"))
        return fnmatchcase(file.reason or "", reason or "*") and fnmatchcase(below, path or "*")

    return sorted(name for name, file in ledger.items() if file.state == QUARANTINED and matches(name, file))


def replay(delta_tables: DeltaTables, image_folder: ImageFolder, *, reason: str, path: str) -> int:
    """Checks the matching quarantined files again, with the current limits, and returns how many there were.

    Files that are images now get their rows. replayed_files gets a row for each file, with its former reason.
    """
    ledger = read_ledger(delta_tables, pc.field("state") == QUARANTINED)
    chosen = matching_quarantined(ledger, image_folder.path, reason=reason, path=path)
    if not chosen:
        return 0
    before = ledger_rows(delta_tables, chosen)
    stat_file = image_folder.stat_files(chosen)
    files = [file for name in chosen if (file := stat_file(name)) and file.regular]
    executor = executor_for(delta_tables.pyspark, size_of(files))
    with delta_tables.progress_line("read again", len(files), "files") as progress:
        for chunk in chunked(files):
            result = append_new_files(delta_tables, chunk, ledger, to_limits(image_folder), executor, progress)
            decide_by_decoding(delta_tables, image_folder, chunk, result.raw_images_version, executor)
    now, time = ledger_rows(delta_tables, chosen), datetime.now(UTC)
    rows = []
    for path, entry in now.items():
        # The message of a current file is a mark for featured_images.
        message = None if entry["state"] == CURRENT else entry["message"]
        new = (entry["state"], entry["reason"], message, entry["attempts"])
        values = (path, before[path]["reason"], before[path]["message"], *new, time)
        rows.append(dict(zip(REPLAYED_FILES.columns.fieldNames(), values, strict=True)))
    written = write_files(rows, delta_tables.uri(REPLAYED_FILES), file_layout(REPLAYED_FILES))
    delta_tables.append_files(REPLAYED_FILES, list(written))
    return len(chosen)


def ledger_rows(delta_tables: DeltaTables, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The ledger's state, reason, message and attempts for each path."""
    columns = ["path", "state", "reason", "message", "attempts"]
    rows = delta_tables.read(IMAGE_FILES, columns, pc.field("path").isin(paths)).to_pylist()
    return {row.pop("path"): row for row in rows}


def replay_result(delta_tables: DeltaTables, before: Snapshot, files: int) -> dg.MaterializeResult:
    """The materialization, with the number of files for each outcome."""
    change = delta_tables.change_since(before, REPLAYED_FILES)
    columns = ("reason_before", "state", "reason")
    rows = delta_tables.newest(REPLAYED_FILES, before, columns, files)
    counts = Counter(tuple(row[name] for name in columns) for row in rows)
    return delta_tables.materialized(
        REPLAYED_FILES,
        change,
        outcome=dg.MetadataValue.table(
            [
                dg.TableRecord({**dict(zip(columns, outcome, strict=True)), "count": count})
                for outcome, count in counts.most_common()
            ],
            dg.TableSchema([*map(dg.TableColumn, columns), dg.TableColumn("count", "int")]),  # no file may match
        ),
    )


replayed_files = dg.AssetSpec(
    "replayed_files",
    description="Quarantined files that were checked again on request, with the old and the new result.",
    kinds={"pyspark", "deltalake"},
    skippable=True,
)
