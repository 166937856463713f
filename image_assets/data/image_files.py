"""Every file ever seen in the landing folder, and what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from image_assets.data.judging import CURRENT, MISSING, PENDING, QUARANTINED
from image_assets.schemas import IMAGE_FILES
from resources.delta_tables import DeltaTables
from resources.file_system import ImageFile

DECISION = (
    "path string, state string, reason string, message string, image_id string, length long, "
    "modification_time timestamp"
)


@dataclass(frozen=True)
class Known:
    """What the ledger says of a file: enough to see whether the file is another one now."""

    state: str
    reason: str | None
    image_id: str | None
    modified_microseconds: int
    length: int


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


@dataclass(frozen=True)
class FolderChanges:
    """How a listing differs from the ledger."""

    to_read: tuple[ImageFile, ...]
    irregular: tuple[ImageFile, ...]
    missing: tuple[str, ...]


def compare(listed: Iterable[ImageFile], known: Mapping[str, Known]) -> FolderChanges:
    """The files that are new or other than the ledger says, those that are no regular files, those that are gone."""
    to_read, irregular, seen = [], [], set()
    for file in listed:
        seen.add(file.path)
        before = known.get(file.path)
        same = before is not None and (
            before.length == file.length
            and before.modified_microseconds == to_microseconds(file.modification_time)
            and before.state not in (PENDING, MISSING)
        )
        if not same:
            (to_read if file.regular else irregular).append(file)
    missing = [path for path, before in known.items() if path not in seen and before.state != MISSING]
    return FolderChanges(tuple(to_read), tuple(irregular), tuple(missing))


def to_microseconds(time: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return round(time.timestamp() * 1e6)


def to_decision(file: ImageFile, state: str, reason: str | None, message: str | None, image_id: str | None) -> Decision:
    """What a run says of a listed file."""
    return Decision(file.path, state, reason, message, image_id, file.length, file.modification_time)


def read_known(delta_tables: DeltaTables) -> dict[str, Known]:
    """The ledger by path."""
    columns = ["path", "state", "reason", "image_id", F.unix_micros("modification_time"), "length"]
    rows = delta_tables.read(IMAGE_FILES).select(columns).collect()
    return {row[0]: Known(*row[1:]) for row in rows}


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
