"""Every file ever seen in the landing folder, and what became of it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.judging import CURRENT, MISSING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta_tables import DeltaTables
from resources.image_file import ImageFile
from resources.thin_tables import ThinTables

NOT_REGULAR = "not_regular"  # a reason: such files are never opened
DECISION = (
    "path string, state string, reason string, message string, image_id string, length long, "
    "modification_time timestamp"
)


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
    """What a run says of a file, in the order of `DECISION`; what it leaves out stays as it was."""

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


def with_history(decisions: DataFrame, ledger: DataFrame) -> DataFrame:
    """Ledger rows for the decisions: what a decision leaves out, and the history, come from the ledger."""
    old = ledger.select("path", *(F.col(name).alias(f"old_{name}") for name in IMAGE_FILES.columns.fieldNames()[1:]))
    judged = F.col("state").isin(CURRENT, QUARANTINED).cast("int")
    gone = F.col("state") == MISSING
    return decisions.join(old, on="path", how="left").select(
        "path",
        "state",
        F.when(gone, F.col("old_reason")).otherwise(F.col("reason")).alias("reason"),
        F.when(gone, F.col("old_message")).otherwise(F.col("message")).alias("message"),
        F.coalesce("image_id", "old_image_id").alias("image_id"),
        F.coalesce("length", "old_length").alias("length"),
        F.coalesce("modification_time", "old_modification_time").alias("modification_time"),
        (F.coalesce("old_attempts", F.lit(0)) + judged).alias("attempts"),
        F.coalesce("old_first_seen", F.current_timestamp()).alias("first_seen"),
        F.current_timestamp().alias("last_seen"),
    )


def record(delta_tables: DeltaTables, decisions: DataFrame | Sequence[Decision]) -> None:
    """Merge decisions into the ledger; none, and nothing is written."""
    if not isinstance(decisions, DataFrame):
        if not decisions:
            return
        decisions = delta_tables.spark.createDataFrame([astuple(decision) for decision in decisions], DECISION)
    delta_tables.merge(with_history(decisions, delta_tables.read(IMAGE_FILES)), IMAGE_FILES)
