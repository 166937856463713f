"""The ledger: every file ever seen in the landing folder, with its state."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.images.charts import picture_markdown
from image_assets.images.contact_sheets import contact_sheet, partial_thumbnails
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_log import UPSTREAM
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import followed_version
from resources.files.file_system import EPOCH, ImageFile

IMAGE_KEYS = ["path", "image_id"]
SHEET_FILES = 32  # files on the sheet
NOT_REGULAR = "not_regular"  # a reason: such files are never opened
EXCLUDED = "excluded"  # a reason of missing files: they may be there, but the filters skip them
UNREADABLE_FOLDER, UNREADABLE_FILE = "unreadable_folder", "unreadable_file"  # reasons
# The message of a current file whose bytes had a row in raw_images before: featured_images may lack it.
SEEN_BEFORE = "these bytes were imported before; the next run of featured_images adds them if they are missing there"
# Reasons that may lie in the machine instead of the file: another run reads such files once more.
RETRIED = ("timeout", "out_of_memory", "decoder_crash", UNREADABLE_FILE)
RETRY_UNREADABLE_AFTER = timedelta(minutes=10)  # sensors start a run within seconds: an outage would not be over yet
FAILED_TWICE = " (a second attempt failed too)"  # the end of the message after that
# How a decision updates a row of the ledger; nulls leave the old value. A file that cannot be read has no image_id.
SAME_FILE = """(new.image_id = old.image_id OR new.image_id IS NULL
    AND new.length = old.length AND new.modification_time = old.modification_time)"""
IS_SECOND_FAILURE = f"""new.reason IN {RETRIED} AND {SAME_FILE} AND (
    old.state = '{QUARANTINED}' AND old.reason IN {RETRIED} OR old.state = '{CURRENT}' AND old.message = '{SEEN_BEFORE}'
)"""
LEDGER_UPDATES = {
    "state": "new.state",
    "reason": f"CASE WHEN new.state = '{MISSING}' THEN coalesce(new.reason, old.reason) ELSE new.reason END",
    "message": f"""CASE WHEN new.state = '{MISSING}' THEN coalesce(new.message, old.message)
        WHEN {IS_SECOND_FAILURE} THEN concat(new.message, '{FAILED_TWICE}') ELSE new.message END""",
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


def current_key_batches(delta_tables: DeltaTables) -> pa.RecordBatchReader:
    """The same, read while it is used."""
    return delta_tables.batches(IMAGE_FILES, IMAGE_KEYS, pc.field("state") == CURRENT)


def quarantine_metadata(delta_tables: DeltaTables, link_roots: Sequence[str]) -> dict[str, dg.MetadataValue]:
    """Metadata with the number of quarantined files for each reason, an example of each, and a contact sheet."""
    rows = delta_tables.read(
        IMAGE_FILES, ["path", "reason", "message", "last_seen"], pc.field("state") == QUARANTINED
    ).to_pylist()
    if not rows:
        return {}
    rows.sort(key=lambda row: (-row["last_seen"].timestamp(), row["path"]))
    newest = rows[:SHEET_FILES]
    pictures = partial_thumbnails((row["path"] for row in newest), link_roots)
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
    modified_microseconds: int | None
    length: int | None  # None if it could not be read, as of folders
    retry: bool = False  # whether to read the quarantined file once more

    def is_unchanged(self, file: ImageFile) -> bool:
        """Whether the file has the same size and time."""
        return (self.length, self.modified_microseconds) == (file.length, to_microseconds(file.modification_time))


LEDGER_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "state", "reason", "image_id")),
        ("modified_microseconds", pa.int64()),
        ("length", pa.int64()),
        ("retry", pa.bool_()),
    ]
)


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
    """Microseconds since 1970, exactly: a float would round times after the year 2255."""
    return (time - EPOCH) // timedelta(microseconds=1)


def to_decision(file: ImageFile, state: str, reason: str | None, message: str | None, image_id: str | None) -> Decision:
    """The decision about a listed file."""
    return Decision(file.path, state, reason, message, image_id, file.length, file.modification_time)


def to_entry(decision: Decision) -> LedgerEntry:
    """What the ledger will hold of a file that it does not have yet."""
    time = decision.modification_time
    modified = None if time is None else to_microseconds(time)
    return LedgerEntry(decision.state, decision.reason, decision.image_id, modified, decision.length)


class Ledger(Mapping[str, LedgerEntry]):
    """The ledger's entries by path, held as Arrow columns: a tenth of the memory of as many Python objects.

    Read `rows`, or a few entries with `named`; any other access by path creates all entries.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows  # with the columns of LEDGER_SCHEMA

    @classmethod
    def of(cls, entries: Mapping[str, LedgerEntry]) -> "Ledger":
        """The same entries as columns."""
        if isinstance(entries, Ledger):
            return entries
        return cls(
            pa.Table.from_pylist([{"path": path, **one._asdict()} for path, one in entries.items()], LEDGER_SCHEMA)
        )

    @cached_property
    def entries(self) -> dict[str, LedgerEntry]:
        """All entries."""
        return to_entries(self.rows)

    def __getitem__(self, path: str) -> LedgerEntry:
        return self.entries[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows["path"].to_pylist())

    def __len__(self) -> int:
        return len(self.rows)

    def named(self, paths: Iterable[str]) -> "Ledger":
        """The entries with these paths."""
        return self.filtered(is_among(self.rows["path"], paths))

    def filtered(self, mask: np.ndarray) -> "Ledger":
        """The entries (n,) that the mask selects."""
        return Ledger(self.rows.filter(pa.array(mask)))

    def is_in_state(self, *states: str) -> np.ndarray:
        """Which of the entries (n,) are in one of the states."""
        return is_among(self.rows["state"], states)

    def recorded(self, decisions: "Sequence[Decision]") -> "Ledger":
        """The ledger as it will be with these decisions."""
        if not decisions:
            return self
        new = Ledger.of({decision.path: to_entry(decision) for decision in decisions})
        others = self.filtered(~is_among(self.rows["path"], new))
        return Ledger(pa.concat_tables([others.rows, new.rows]))


def is_among(values: pa.ChunkedArray, wanted: Iterable[str]) -> np.ndarray:
    """Which of the values (n,) are among the wanted ones."""
    options = pc.SetLookupOptions(pa.array(list(wanted), pa.string()))
    return pc.call_function("is_in", [values], options).to_numpy().astype(bool)


def to_entries(rows: pa.Table) -> dict[str, LedgerEntry]:
    """The entries by path."""
    paths, *facts = (rows[name].to_pylist() for name in LEDGER_SCHEMA.names)
    return dict(zip(paths, map(LedgerEntry._make, zip(*facts, strict=True)), strict=True))


def read_ledger(delta_tables: DeltaTables, where: pc.Expression | None = None) -> Ledger:
    """The ledger's entries, or some of them."""
    columns = ["path", "state", "reason", "image_id", "modification_time", "length", "message", "last_seen"]
    rows = delta_tables.read(IMAGE_FILES, columns, where)
    times = rows["modification_time"].cast(pa.timestamp("us")).cast(pa.int64())
    ends = pc.call_function("ends_with", [rows["message"]], pc.MatchSubstringOptions(FAILED_TWICE))
    is_retried = is_among(rows["reason"], RETRIED) & is_among(rows["state"], [QUARANTINED])
    has_waited = pc.call_function("less", [rows["last_seen"], pa.scalar(datetime.now(UTC) - RETRY_UNREADABLE_AFTER)])
    is_retried &= ~is_among(rows["reason"], [UNREADABLE_FILE]) | has_waited.to_numpy().astype(bool)
    retry = pa.array(is_retried & ~ends.fill_null(False).to_numpy().astype(bool))
    facts = [rows[name] for name in ("path", "state", "reason", "image_id")]
    return Ledger(pa.table([*facts, times, rows["length"], retry], schema=LEDGER_SCHEMA))


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


image_files = dg.AssetSpec(
    "image_files",
    description="Every file ever seen in the landing folder: current, pending, quarantined (with the reason) or "
    "missing.",
    kinds={"pyspark", "deltalake"},
)
