"""The history of every model version's stage: what changed, when, by whom and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.models.promotion_gate import GateFinding
from image_assets.models.version_ids import MAX_CLOCK_SKEW, identify_rows
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ALIASES, ARCHIVED_STAGE, ModelRegistry, ModelVersion

PROMOTION_TAG = "promotion"  # of a version: describes its promotion, written before anything is moved
OUTSIDE = "mlflow"
MIRRORED = "stage_changes"  # the sensor, which lets the stage follow the alias and vice versa
NOWHERE, DELETED = "None", "deleted"
# The columns that are compared with the registry.
COMPARED = ["model_version", "version_id", "change", "changed_at", "to_stage", "aliases", "promotion_id", "reason"]
REQUEST = ["request", "requested_stage", "account", "person"]
MOVE_TIME = timedelta(minutes=10)  # from writing the tag to the last move of a promotion
MAX_DETAIL_LENGTH = 300  # of a finding in a tag; MLflow limits tags to 5,000 characters
# Any: a row's values are of several types.
HistoryRow = Mapping[str, Any]
StageAndAliases = tuple[str, list[str]]  # stage and aliases
VersionKey = tuple[int, str]  # number and version_id


@dataclass(frozen=True)
class Promotion:
    """The description of a promotion, stored in a tag of the version that it moves."""

    stage: str
    source: str
    person: str | None = None
    reason: str | None = None
    forced: bool = False
    findings: Sequence[GateFinding] | None = None
    promotion_id: str = ""
    announced_at: Annotated[AwareDatetime | None, Field(alias="told_at")] = None  # when the tag was written
    account: str | None = None

    def to_tags(self) -> dict[str, str]:
        """The tag for the version that it moves, with a new promotion_id unless it has that of a request."""
        findings = self.findings and [replace(one, detail=one.detail[:MAX_DETAIL_LENGTH]) for one in self.findings]
        now, promotion_id = datetime.now(UTC), self.promotion_id or uuid4().hex
        announced = replace(self, findings=findings, announced_at=now, promotion_id=promotion_id)
        return {PROMOTION_TAG: TAG_VALUE.dump_json(announced, by_alias=True).decode()}

    @classmethod
    def of(cls, version: ModelVersion) -> "Promotion | None":
        """The last promotion of a version, from its tag; None if it has none, or one that was not written here."""
        try:
            return TAG_VALUE.validate_json(version.tags.get(PROMOTION_TAG, ""))
        except ValidationError:
            return None

    def before(self, moved_at: datetime) -> bool:
        """Whether the tag was written before the version was last moved."""
        return not self.announced_at or self.announced_at < moved_at + MAX_CLOCK_SKEW

    def moved(self, version: ModelVersion) -> bool:
        """Whether this promotion put the version into its current stage.

        A promotion may be killed before it moves anything, and somebody else may move the version much later.
        """
        in_time = not self.announced_at or abs(version.moved_at - self.announced_at) < MOVE_TIME
        return self.stage == version.stage and in_time

    def to_columns(self, reason: str | None = None, findings: Sequence[GateFinding] | None = None) -> dict[str, Any]:
        """Columns of a row in stage_history."""
        by = {"source": self.source, "person": self.person, "account": self.account, "forced": self.forced}
        by["promotion_id"] = self.promotion_id
        return {**by, "reason": reason, "findings": None if findings is None else [one.to_row() for one in findings]}


TAG_VALUE = TypeAdapter(Promotion)  # ignores fields that another release adds


@dataclass(frozen=True)
class Promotions:
    """The last promotion of each version, compared with the recorded history."""

    all: Mapping[int, Promotion]
    unseen: Mapping[int, Promotion]  # not in the history, and the version was moved since
    completed: Mapping[int, Promotion]  # unseen ones whose version is in their stage

    @classmethod
    def of(cls, versions: Sequence[ModelVersion], history: Sequence[HistoryRow]) -> "Promotions":
        """The promotions described by the versions' tags."""
        recorded = {row["promotion_id"] for row in history if not row.get("request")}
        announced = {version.version: of for version in versions if (of := Promotion.of(version))}
        current = {version.version: version for version in versions}
        unseen = {
            number: of
            for number, of in announced.items()
            if of.promotion_id not in recorded and of.before(current[number].moved_at)
        }
        return cls(announced, unseen, {number: of for number, of in unseen.items() if of.moved(current[number])})

    def passed(self, number: int | None, before: HistoryRow, after: str) -> Promotion | None:
        """The unrecorded promotion of a version that another unrecorded promotion has archived since."""
        of = self.unseen.get(number) if number else None
        if of is None or of.stage == before["to_stage"] or after != ARCHIVED_STAGE:
            return None
        others = {
            promotion.stage
            for other, promotion in self.completed.items()
            if other != number and promotion.stage in ALIASES
        }
        return of if of.stage in others else None

    def attribution(self, number: int | None, before: HistoryRow, after: StageAndAliases) -> dict[str, Any]:
        """Who moved a version (None: one that is gone) and why; without a promotion, somebody moved it in MLflow."""
        return (
            self._own_move(number)
            or self._replacement(before, after)
            or self._last_step(number, before, after)
            or {"source": OUTSIDE, "forced": False}
        )

    def _own_move(self, number: int | None) -> dict[str, Any] | None:
        """The promotion that moved the version itself."""
        of = self.completed.get(number) if number else None
        return of.to_columns(of.reason, of.findings) if of else None

    def _replacement(self, before: HistoryRow, after: StageAndAliases) -> dict[str, Any] | None:
        """The promotion of another version, which archived this one or took its alias."""
        lost = set(before["aliases"]) - set(after[1])
        for other, of in self.completed.items():
            if of.stage in ALIASES and (of.stage == before["to_stage"] or lost == {ALIASES[of.stage]}):
                return of.to_columns(f"replaced by version {other}")
        return None

    def _last_step(self, number: int | None, before: HistoryRow, after: StageAndAliases) -> dict[str, Any] | None:
        """The promotion whose new stage is in the history already, and which has moved the alias since."""
        former, now = set(before["aliases"]), set(after[1])
        lost = former - now
        for other, of in self.all.items():
            gains = {ALIASES.get(of.stage)} if other == number else set()
            follows = before["promotion_id"] == of.promotion_id and before["to_stage"] == after[0]
            if follows and now - former <= gains and not lost & gains and lost <= set(ALIASES.values()):
                return of.to_columns(before["reason"], of.findings if other == number else None)
        return None


def changes(versions: Sequence[ModelVersion], history: Sequence[HistoryRow], now: datetime) -> list[dict[str, Any]]:
    """Rows for versions whose stage or aliases differ from the history (sorted by change).

    Versions that are in the history and not in the registry were deleted; or, if it has none of the history, they are
    in another registry.
    """
    last = {(row["model_version"], row["version_id"]): row for row in history}
    current: dict[VersionKey, StageAndAliases] = {
        (version.version, version.version_id): (version.stage, list(version.aliases)) for version in versions
    }
    promotions = Promotions.of(versions, history)
    found = []
    for key in sorted({*current, *last} if current.keys() & last.keys() else current):
        before = last.get(key) or {"to_stage": NOWHERE, "aliases": [], "change": 0, "promotion_id": None}
        after = current.get(key, (DELETED, []))
        number = key[0] if key in current else None
        if passed := promotions.passed(number, before, after[0]):
            by = passed.to_columns(passed.reason, passed.findings)
            before = to_row(key, before, (passed.stage, [ALIASES[passed.stage]]), by, now)
            found.append(before)
        if after != (before["to_stage"], list(before["aliases"])):
            found.append(to_row(key, before, after, promotions.attribution(number, before, after), now))
    return found


def to_row(of: VersionKey, before: HistoryRow, after: StageAndAliases, by: HistoryRow, now: datetime) -> dict[str, Any]:
    """The row of one change."""
    key = {"model_version": of[0], "version_id": of[1], "change": before["change"] + 1, "changed_at": now}
    return {**key, "from_stage": before["to_stage"], "to_stage": after[0], "aliases": after[1], **by}


def read_history(model_name: str, delta_tables: DeltaTables) -> list[dict[str, Any]]:
    """The recorded changes, those of each version in their order."""
    rows = delta_tables.read(STAGE_HISTORY, [*COMPARED, *REQUEST], pc.field("model_name") == model_name).to_pylist()
    return sorted(rows, key=lambda row: row["change"])


def record_changes(
    model_name: str, versions: Sequence[ModelVersion], delta_tables: DeltaTables, mirrored: str | None = None
) -> list[dict[str, Any]]:
    """Records all changes of stages and aliases since the last call, whoever made them; returns the new rows.

    Concurrent calls write the same keys, so the table gets each row once.

    Args:
        model_name: The registered model.
        versions: All its versions.
        delta_tables: The tables.
        mirrored: The reason for changes that no promotion explains, if the sensor has just made them.
    """
    identify_rows(delta_tables, versions, STAGE_HISTORY)
    rows = changes(versions, read_history(model_name, delta_tables), datetime.now(UTC))
    by = {"source": MIRRORED, "reason": mirrored} if mirrored else {}
    found = [{"model_name": model_name, **row, **(by if row["source"] == OUTSIDE else {})} for row in rows]
    if found:
        delta_tables.merge(
            pa.Table.from_pylist(found, to_arrow_schema(STAGE_HISTORY.columns)), STAGE_HISTORY, updates={}
        )
    return found


def changes_markdown(rows: Sequence[HistoryRow]) -> str:
    """Changes as a Markdown table, newest first."""
    lines = [
        f"| {row['changed_at']:%Y-%m-%d %H:%M} | {row['model_version']} | {change_of(row)} "
        f"| {', '.join(row['aliases'])} | {row['person'] or row.get('account') or row['source']} "
        f"| {row['reason'] or ''}{' (forced)' if row['forced'] else ''} |"
        for row in sorted(rows, key=lambda row: row["changed_at"], reverse=True)
    ]
    return "\n".join(["| when, UTC | version | stage | aliases | who | why |", "|---|---|---|---|---|---|", *lines])


def change_of(row: HistoryRow) -> str:
    """What a row says: `None → Production`, or `Production requested`."""
    if row.get("request"):
        return f"{row['requested_stage']} {row['request']}"
    return f"{row['from_stage']} → {row['to_stage']}"


@dg.asset(deps=["model_evaluations"], kinds={"deltalake", "mlflow"}, pool="stage_history")
def stage_history(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.MaterializeResult:
    """Stage changes of all model versions: who moved which version, when and why, including changes made in MLflow."""
    before = delta_tables.snapshot(STAGE_HISTORY)
    record_changes(model_registry.name, model_registry.versions(), delta_tables)
    of_model = pc.field("model_name") == model_registry.name
    rows = delta_tables.read(STAGE_HISTORY, STAGE_HISTORY.columns.fieldNames(), of_model).to_pylist()
    change = delta_tables.change_since(before, STAGE_HISTORY)
    return delta_tables.materialized(STAGE_HISTORY, change, changes=dg.MetadataValue.md(changes_markdown(rows)))
