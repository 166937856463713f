"""Every file ever seen in the landing folder, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.file_states import CURRENT, MISSING, QUARANTINED
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES
from resources.image_file import ImageFile
from resources.thin_tables import ThinTables

NOT_REGULAR = "not_regular"  # a reason: such files are never opened
# What becomes of a row of the ledger by a decision: what that leaves out stays as it was.
KEEPING_HISTORY = {
    "state": "new.state",
    **{
        name: f"CASE WHEN new.state = '{MISSING}' THEN old.{name} ELSE new.{name} END" for name in ("reason", "message")
    },
    **{name: f"coalesce(new.{name}, old.{name})" for name in ("image_id", "length", "modification_time")},
    "attempts": "old.attempts + new.attempts",
    "last_seen": "new.last_seen",
}


class Known(NamedTuple):
    """What the ledger says of a file: enough to see whether the file is another one now."""

    state: str
    reason: str | None
    image_id: str | None
    modified_microseconds: int
    length: int

    def is_still(self, file: ImageFile) -> bool:
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


def read_known(thin_tables: ThinTables) -> dict[str, Known]:
    """The ledger by path."""
    rows = thin_tables.read(IMAGE_FILES, ["path", "state", "reason", "image_id", "modification_time", "length"])
    times = pc.cast(pc.cast(rows["modification_time"], pa.timestamp("us")), pa.int64())
    columns = [rows[name].to_pylist() for name in ("state", "reason", "image_id")]
    facts = zip(*columns, times.to_pylist(), rows["length"].to_pylist(), strict=True)
    return dict(zip(rows["path"].to_pylist(), map(Known._make, facts), strict=True))


def record(thin_tables: ThinTables, decisions: Sequence[Decision], raw_images_version: int | None = None) -> None:
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
    thin_tables.merge(pa.Table.from_pylist(rows, schema), IMAGE_FILES, updates=KEEPING_HISTORY, transaction=transaction)


def recorded_version(thin_tables: ThinTables) -> int | None:
    """Up to which Delta version of raw_images the ledger speaks of its rows."""
    return thin_tables.transaction(IMAGE_FILES, RAW_IMAGES.name)
