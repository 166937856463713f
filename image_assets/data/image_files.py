"""The ledger: every file ever seen in the landing folder, with its state."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from math import ceil
from typing import Any, NamedTuple
from urllib.parse import unquote
from zlib import crc32

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.inspection import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, partial_thumbnails
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_log import UPSTREAM
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import followed_version
from resources.files.file_system import FileChanged, ImageFile, read_content
from resources.files.image_folder import ImageFolder, Listing
from resources.progress import ProgressLine

IMAGE_KEYS = ["path", "image_id"]
SHEET_FILES = 32  # files on the sheet
NOT_REGULAR = "not_regular"  # a reason: such files are never opened
# The message of a current file whose bytes had a row in raw_images before: featured_images may lack it.
SEEN_BEFORE = "these bytes were imported before; the next run of featured_images adds them if they are missing there"
# How a decision updates a row of the ledger; nulls leave the old value.
LEDGER_UPDATES = {
    "state": "new.state",
    **{
        name: f"CASE WHEN new.state = '{MISSING}' THEN old.{name} ELSE new.{name} END" for name in ("reason", "message")
    },
    **{name: f"coalesce(new.{name}, old.{name})" for name in ("image_id", "length", "modification_time")},
    "attempts": "old.attempts + new.attempts",
    "last_seen": "new.last_seen",
}


def current_files(ledger: DataFrame) -> DataFrame:
    """Path and image_id of the files in state `current`; `ledger` holds rows of image_files."""
    return ledger.where(F.col("state") == CURRENT).select(*IMAGE_KEYS)


def current_keys(delta_tables: DeltaTables) -> pd.DataFrame:
    """The same as `current_files`, read without Spark."""
    return delta_tables.read(IMAGE_FILES, IMAGE_KEYS, pc.field("state") == CURRENT).to_pandas()


def quarantine_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of quarantined files for each reason, an example of each, and a contact sheet."""
    rows = delta_tables.read(
        IMAGE_FILES, ["path", "reason", "message", "last_seen"], pc.field("state") == QUARANTINED
    ).to_pylist()
    if not rows:
        return {}
    rows.sort(key=lambda row: (-row["last_seen"].timestamp(), row["path"]))
    newest = rows[:SHEET_FILES]
    pictures = partial_thumbnails(row["path"] for row in newest)
    captions = [f"{row['reason']}: {unquote(row['path'].rpartition('/')[2])}" for row in newest]
    sheet = picture_markdown(
        contact_sheet(list(zip(pictures, captions, strict=True))),
        f"the newest {len(newest)} of {len(rows):,} quarantined files, as far as they decode",
    )
    return {"quarantined": by_reason(rows), "quarantined_files": dg.MetadataValue.md(sheet)}


def by_reason(newest_first: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table with the number of files for each reason, most frequent first, and the newest message."""
    counts = Counter(row["reason"] for row in newest_first)
    newest = {row["reason"]: row for row in reversed(newest_first)}
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "reason": str(reason),
                    "files": str(count),
                    "example": str(newest[reason]["message"]),
                    "last seen": f"{newest[reason]['last_seen']:%Y-%m-%d %H:%M:%S} UTC",
                }
            )
            for reason, count in sorted(counts.items(), key=lambda found: (-found[1], str(found[0])))
        ]
    )


class LedgerEntry(NamedTuple):
    """What the ledger records of a file: enough to notice a change."""

    state: str
    reason: str | None
    image_id: str | None
    modified_microseconds: int
    length: int

    def is_unchanged(self, file: ImageFile) -> bool:
        """Whether the file has the same size and time."""
        return (self.length, self.modified_microseconds) == (file.length, to_microseconds(file.modification_time))


@dataclass(frozen=True)
class Decision:
    """A file's new state in the ledger; fields that are None keep their old value, except reason and message."""

    path: str
    state: str
    reason: str | None = None
    message: str | None = None
    image_id: str | None = None
    length: int | None = None
    modification_time: datetime | None = None


def to_microseconds(time: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return round(time.timestamp() * 1e6)


def to_decision(file: ImageFile, state: str, reason: str | None, message: str | None, image_id: str | None) -> Decision:
    """The decision about a listed file."""
    return Decision(file.path, state, reason, message, image_id, file.length, file.modification_time)


def read_ledger(delta_tables: DeltaTables) -> dict[str, LedgerEntry]:
    """The ledger's entries by path."""
    rows = delta_tables.read(IMAGE_FILES, ["path", "state", "reason", "image_id", "modification_time", "length"])
    times = pc.cast(pc.cast(rows["modification_time"], pa.timestamp("us")), pa.int64())
    columns = [rows[name].to_pylist() for name in ("state", "reason", "image_id")]
    facts = zip(*columns, times.to_pylist(), rows["length"].to_pylist(), strict=True)
    return dict(zip(rows["path"].to_pylist(), map(LedgerEntry._make, facts), strict=True))


def merge_decisions(
    delta_tables: DeltaTables,
    decisions: Sequence[Decision],
    raw_images_version: int | None = None,
    *,
    attempted: bool = True,
) -> None:
    """Merge decisions into the ledger, in one commit; writes nothing if there are none.

    Args:
        delta_tables: Holds the ledger.
        decisions: At most one for each path.
        raw_images_version: The Delta version of raw_images whose rows the ledger covers now; unchanged if None.
        attempted: Whether the files were read, which counts as an attempt.
    """
    if not decisions:
        return
    now = datetime.now(UTC)
    rows = [
        {
            **vars(decision),
            "attempts": int(attempted and decision.state in (CURRENT, QUARANTINED)),
            "first_seen": now,
            "last_seen": now,
        }
        for decision in decisions
    ]
    follows = None if raw_images_version is None else (RAW_IMAGES, raw_images_version)
    schema = to_arrow_schema(IMAGE_FILES.columns)
    delta_tables.merge(pa.Table.from_pylist(rows, schema), IMAGE_FILES, updates=LEDGER_UPDATES, follows=follows)


def recorded_version(delta_tables: DeltaTables) -> int | None:
    """The Delta version of raw_images up to which the ledger covers its rows; None if it has to compare them."""
    if delta_tables.newest_commit(IMAGE_FILES, lambda commit: UPSTREAM in commit):
        return followed_version(delta_tables, RAW_IMAGES, IMAGE_FILES)
    return delta_tables.transaction(IMAGE_FILES, RAW_IMAGES.name)  # as older releases recorded it


def read_seen_before(delta_tables: DeltaTables) -> list[tuple[str, str]]:
    """Path and image_id of the files marked SEEN_BEFORE."""
    marked = (pc.field("state") == CURRENT) & (pc.field("message") == SEEN_BEFORE)
    return [(row["path"], row["image_id"]) for row in delta_tables.read(IMAGE_FILES, IMAGE_KEYS, marked).to_pylist()]


def remove_seen_before(delta_tables: DeltaTables, marked: Sequence[tuple[str, str]]) -> None:
    """Remove the marks of files that have them still; the rest of their rows stays."""
    still = sorted(set(marked) & set(read_seen_before(delta_tables)))
    decisions = [Decision(path, CURRENT, image_id=image_id) for path, image_id in still]
    merge_decisions(delta_tables, decisions, attempted=False)


@dataclass(frozen=True)
class FolderChanges:
    """Differences between the folder and the ledger.

    `listed` counts the files in the folder, `checked` those whose size and time were compared.
    """

    listed: int
    checked: int
    to_read: tuple[ImageFile, ...]
    irregular: tuple[ImageFile, ...]
    missing: tuple[str, ...]
    unsettled: int = 0  # files that may still be written to; not among the others

    def __str__(self) -> str:
        counts = {
            "new or changed": len(self.to_read),
            "deleted": len(self.missing),
            "not regular files": len(self.irregular),
            "still being written": self.unsettled,
        }
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        files = f"{self.listed:,} {'file' if self.listed == 1 else 'files'}"
        return f"{files}, {self.checked:,} checked: {found or 'no changes'}"

    def digest(self) -> str:
        """A short hash of the changes; empty if there are none."""
        lines = [f"{file.path}\t{file.modification_time.timestamp()}\t{file.length}" for file in self.to_read]
        lines += [f"{file.path}\tirregular" for file in self.irregular] + [f"{path}\tgone" for path in self.missing]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32] if lines else ""


def without_unsettled(changes: FolderChanges, image_folder: ImageFolder) -> FolderChanges:
    """The changes without the files that may still be written to."""
    whole = tuple(image_folder.old_enough(changes.to_read))
    return replace(changes, to_read=whole, unsettled=len(changes.to_read) - len(whole))


def folder_changes(
    image_folder: ImageFolder, ledger: Mapping[str, LedgerEntry], part: int | None, only: Collection[str] = ()
) -> FolderChanges:
    """Compares the folder with the ledger.

    Lists all names and checks those that are not in the ledger. Of the files in the ledger, a slice of about
    `sweep_files` is checked for a changed size or time, and about `sweep_bytes` of content are hashed to find files
    that were rewritten with the same size and time. Successive values of `part` cover the whole folder.

    Args:
        image_folder: The landing folder.
        ledger: The ledger's entries by path.
        part: Number of the slice to check; None compares the size and time of every file and hashes none.
        only: Check only these paths, without listing the folder; empty for all files.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    listing = image_folder.list_paths(only) if only else image_folder.list_names()
    ledger = {path: ledger[path] for path in only if path in ledger} if only else ledger
    to_check = list(paths_to_check(listing, ledger, part, image_folder.sweep_files))
    progress = ProgressLine("checked", len(to_check), "files", dg.get_dagster_logger().info, items=to_check)
    seen = [
        file for path in progress if (file := listing.stat_file(path))
    ]  # a file that was deleted meanwhile counts as missing in the next run
    other = [file for file in seen if not is_up_to_date(file, ledger.get(file.path))]
    swept = [] if part is None else list(find_rewritten_files(listing, ledger, part, image_folder.sweep_bytes))
    return FolderChanges(
        listed=len(listing.names),
        checked=len(to_check),
        to_read=tuple({file.path: file for file in [*other, *swept] if file.regular}.values()),
        irregular=tuple(file for file in other if not file.regular),
        missing=tuple(path for path in ledger.keys() - listing.names.keys() if ledger[path].state != MISSING),
    )


def is_up_to_date(file: ImageFile, before: LedgerEntry | None) -> bool:
    """Whether the ledger describes the file as it is: the same size, time and kind."""
    return (
        before is not None
        and before.state not in (PENDING, MISSING)
        and before.is_unchanged(file)
        and file.regular == (before.reason != NOT_REGULAR)
    )


def paths_to_check(
    listing: Listing, ledger: Mapping[str, LedgerEntry], part: int | None, sweep_files: int
) -> Iterator[str]:
    """The paths that are new, pending or of another kind than before, and those in this slice."""
    parts = 1 if part is None else ceil(len(ledger) / sweep_files)
    for path, regular in listing.names.items():
        before = ledger.get(path)
        if (
            before is None
            or before.state in (PENDING, MISSING)
            or regular == (before.reason == NOT_REGULAR)
            or parts <= 1
            or crc32(path.encode()) % parts == (part or 0) % parts
        ):
            yield path


def find_rewritten_files(
    listing: Listing, ledger: Mapping[str, LedgerEntry], part: int, sweep_bytes: int
) -> Iterator[ImageFile]:
    """The files in this slice whose content changed although size and time did not.

    Files larger than `sweep_bytes` are only compared by `make audit`.
    """
    readable = [
        (path, before)
        for path, before in ledger.items()
        if before.state in (CURRENT, QUARANTINED) and before.image_id and before.length <= sweep_bytes
    ]
    parts = max(1, ceil(sum(before.length for _, before in readable) / sweep_bytes))
    for path, before in readable:
        if crc32(path.encode(), 1) % parts == part % parts:
            file = listing.stat_file(path) if listing.names.get(path) else None
            if file and file.regular and before.is_unchanged(file) and content_id(file) not in (before.image_id, None):
                yield file


def content_id(file: ImageFile) -> str | None:
    """The image_id of the file's current content; None if it cannot be read or is being written."""
    try:
        return sha256(read_content(file.path, length=file.length)).hexdigest()
    except (FileChanged, OSError):
        return None


image_files = dg.AssetSpec(
    "image_files",
    description="Every file ever seen in the landing folder: current, pending, quarantined (with the reason) or "
    "missing.",
    kinds={"pyspark", "deltalake"},
)
