"""Every file ever seen in the landing folder, and what became of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import unquote

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from PIL import ImageFile as PillowFile
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.images.charts import contact_sheet, picture_markdown
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.pixels import BOMBS, BROKEN, FORMATS
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import ImageFile, open_file

IMAGE_KEYS = ["path", "image_id"]


def current_files(ledger: DataFrame) -> DataFrame:
    """Path and image_id of the files in state `current`; `ledger` holds rows of image_files."""
    return ledger.where(F.col("state") == CURRENT).select(*IMAGE_KEYS)


def current_keys(delta_tables: DeltaTables) -> pd.DataFrame:
    """The same, without Spark."""
    return delta_tables.read(IMAGE_FILES, IMAGE_KEYS, pc.field("state") == CURRENT).to_pandas()


SHEET_FILES = 32  # files on the sheet
THUMBNAIL_PIXELS = 112
THUMBNAIL_SECONDS, THUMBNAIL_MEMORY_BYTES = 5, 512 * 1024**2


def quarantine_metadata(delta_tables: DeltaTables) -> dict[str, dg.MetadataValue]:
    """Metadata with the quarantined files by reason, an example of each message, and a contact sheet."""
    rows = delta_tables.read(
        IMAGE_FILES, ["path", "reason", "message", "last_seen"], pc.field("state") == QUARANTINED
    ).to_pylist()
    if not rows:
        return {}
    rows.sort(key=lambda row: (-row["last_seen"].timestamp(), row["path"]))
    newest = rows[:SHEET_FILES]
    with GuardedProcess(partial_thumbnail, memory_bytes=THUMBNAIL_MEMORY_BYTES) as guarded:
        pictures = [guarded.run(row["path"], seconds=THUMBNAIL_SECONDS) for row in newest]
    captions = [f"{row['reason']}: {unquote(row['path'].rpartition('/')[2])}" for row in newest]
    tiles = [
        (b"" if isinstance(picture, ItemFailure) else picture, text)
        for picture, text in zip(pictures, captions, strict=True)
    ]
    sheet = picture_markdown(
        contact_sheet(tiles, THUMBNAIL_PIXELS), f"what can be shown of {len(rows):,} quarantined files"
    )
    return {"quarantined": by_reason(rows), "quarantined_files": dg.MetadataValue.md(sheet)}


def by_reason(newest_first: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """How many files for each reason, the most frequent one first, with the newest message and its time."""
    counts = Counter(row["reason"] for row in newest_first)
    newest = {row["reason"]: row for row in reversed(newest_first)}
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "reason": str(reason),
                    "files": str(count),
                    "such as": str(newest[reason]["message"]),
                    "last seen": f"{newest[reason]['last_seen']:%Y-%m-%d %H:%M:%S} UTC",
                }
            )
            for reason, count in sorted(counts.items(), key=lambda found: (-found[1], str(found[0])))
        ]
    )


def partial_thumbnail(path: str) -> bytes:
    """A small JPEG of as much of a broken image as can be decoded, or nothing; for a guarded process."""
    PillowFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            small = BytesIO()
            image.convert("RGB").save(small, "JPEG")
    except (*BROKEN, *BOMBS):
        return b""
    return small.getvalue()


NOT_REGULAR = "not_regular"  # a reason: such files are never opened
# What becomes of a row of the ledger by a decision: what that leaves out stays as it was.
LEDGER_UPDATES = {
    "state": "new.state",
    **{
        name: f"CASE WHEN new.state = '{MISSING}' THEN old.{name} ELSE new.{name} END" for name in ("reason", "message")
    },
    **{name: f"coalesce(new.{name}, old.{name})" for name in ("image_id", "length", "modification_time")},
    "attempts": "old.attempts + new.attempts",
    "last_seen": "new.last_seen",
}


class LedgerEntry(NamedTuple):
    """What the ledger says of a file: enough to see whether the file is another one now."""

    state: str
    reason: str | None
    image_id: str | None
    modified_microseconds: int
    length: int

    def is_unchanged(self, file: ImageFile) -> bool:
        """Whether size and time of the file are what they were."""
        return (self.length, self.modified_microseconds) == (file.length, to_microseconds(file.modification_time))


@dataclass(frozen=True)
class Decision:
    """What a run says of a file; what it leaves out stays as it was."""

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
    """What a run says of a listed file."""
    return Decision(file.path, state, reason, message, image_id, file.length, file.modification_time)


def read_ledger(delta_tables: DeltaTables) -> dict[str, LedgerEntry]:
    """The ledger by path."""
    rows = delta_tables.read(IMAGE_FILES, ["path", "state", "reason", "image_id", "modification_time", "length"])
    times = pc.cast(pc.cast(rows["modification_time"], pa.timestamp("us")), pa.int64())
    columns = [rows[name].to_pylist() for name in ("state", "reason", "image_id")]
    facts = zip(*columns, times.to_pylist(), rows["length"].to_pylist(), strict=True)
    return dict(zip(rows["path"].to_pylist(), map(LedgerEntry._make, facts), strict=True))


def merge_decisions(
    delta_tables: DeltaTables, decisions: Sequence[Decision], raw_images_version: int | None = None
) -> None:
    """Merge decisions into the ledger, in one commit; none, and nothing is written.

    The commit also says up to which Delta version of raw_images the ledger speaks of its rows.
    """
    if not decisions:
        return
    now = datetime.now(UTC)
    rows = [
        {
            **vars(decision),
            "attempts": int(decision.state in (CURRENT, QUARANTINED)),
            "first_seen": now,
            "last_seen": now,
        }
        for decision in decisions
    ]
    transaction = None if raw_images_version is None else (RAW_IMAGES.name, raw_images_version)
    schema = to_arrow_schema(IMAGE_FILES.columns)
    delta_tables.merge(pa.Table.from_pylist(rows, schema), IMAGE_FILES, updates=LEDGER_UPDATES, transaction=transaction)


def recorded_version(delta_tables: DeltaTables) -> int | None:
    """Up to which Delta version of raw_images the ledger speaks of its rows."""
    return delta_tables.transaction(IMAGE_FILES, RAW_IMAGES.name)
