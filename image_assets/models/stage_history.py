"""Where each model version was, since when, by whom and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import dagster as dg
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.models.promotion_gate import Finding
from image_assets.schemas import STAGE_HISTORY
from resources.delta_tables import DeltaTables
from resources.model_registry import ALIASES, ModelRegistry, ModelVersion
from resources.thin_tables import ThinTables

TOLD_TAG = "promotion"  # what a promotion tells of itself, before it moves anything
OUTSIDE = "mlflow"
NOWHERE, DELETED = "None", "deleted"
COMPARED = ["model_version", "change", "to_stage", "aliases", "promotion_id"]  # of the history, with the registry
SAID_LENGTH = 300  # of a finding, in a tag: MLflow takes 5,000 characters


@dataclass(frozen=True)
class Told:
    """What a promotion tells of itself."""

    stage: str
    source: str
    person: str | None = None
    reason: str | None = None
    forced: bool = False
    findings: Sequence[Finding] | None = None
    promotion_id: str = ""

    def to_tags(self) -> dict[str, str]:
        """As tags of the version that it moves, under an id of its own."""
        told = {**asdict(self), "promotion_id": uuid4().hex}
        if self.findings is not None:
            told["findings"] = [{**asdict(one), "said": one.said[:SAID_LENGTH]} for one in self.findings]
        return {TOLD_TAG: json.dumps(told)}

    @classmethod
    def of(cls, version: ModelVersion) -> "Told | None":
        """What the last promotion of a version told of itself; None where there was none."""
        if TOLD_TAG not in version.tags:
            return None
        told = json.loads(version.tags[TOLD_TAG])
        findings = None if told["findings"] is None else tuple(Finding(**one) for one in told["findings"])
        return cls(**{**told, "findings": findings})


# Any: a row's values are of several types.
Row = Mapping[str, Any]


def changes(versions: Sequence[ModelVersion], history: Sequence[Row], now: datetime) -> list[dict[str, Any]]:
    """Rows for the versions that are somewhere else than the history, in order of its changes, says."""
    last = {row["model_version"]: row for row in history}
    known = {row["promotion_id"] for row in history}
    news = {of.version: told for of in versions if (told := Told.of(of)) and told.promotion_id not in known}
    here = {version.version: version for version in versions}
    found = []
    for number in sorted({*here, *last}):
        before = last.get(number, {"to_stage": NOWHERE, "aliases": [], "change": 0})
        stage, aliases = (here[number].stage, list(here[number].aliases)) if number in here else (DELETED, [])
        if (stage, aliases) != (before["to_stage"], list(before["aliases"])):
            found.append(
                {
                    "model_version": number,
                    "change": before["change"] + 1,
                    "changed_at": now,
                    "from_stage": before["to_stage"],
                    "to_stage": stage,
                    "aliases": aliases,
                    **by_whom(number, before["to_stage"], stage, news),
                }
            )
    return found


def by_whom(number: int, before: str, after: str, news: Mapping[int, Told]) -> dict[str, Any]:
    """Who moved a version, and why, as far as promotions of late tell; else somebody did, in MLflow."""
    told = news.get(number)
    if told and told.stage == after:
        return {name: value for name, value in asdict(told).items() if name != "stage"}
    for other, of in news.items():
        # What a stage's new version leaves behind: its former one is archived, and loses the alias.
        if of.stage in ALIASES and of.stage == before:
            made_by = {"source": of.source, "person": of.person, "promotion_id": of.promotion_id}
            return {**made_by, "reason": f"version {other} took its place", "forced": of.forced}
    return {"source": OUTSIDE, "forced": False}


def record_changes(versions: Sequence[ModelVersion], thin_tables: ThinTables) -> list[dict[str, Any]]:
    """Write down what was moved since the last time, whoever moved it; the new rows.

    Two that do so at once come to the same keys, of which the table takes one row.
    """
    history = thin_tables.read(STAGE_HISTORY, COMPARED).to_pylist()
    found = changes(versions, sorted(history, key=lambda row: row["change"]), datetime.now(UTC))
    if found:
        thin_tables.merge(
            pa.Table.from_pylist(found, to_arrow_schema(STAGE_HISTORY.columns)), STAGE_HISTORY, updates={}
        )
    return found


def to_markdown(rows: Sequence[Row]) -> str:
    """Changes as a table for people, newest first."""
    lines = [
        f"| {row['changed_at']:%Y-%m-%d %H:%M} | {row['model_version']} | {row['from_stage']} → {row['to_stage']} "
        f"| {', '.join(row['aliases'])} | {row['person'] or row['source']} | {row['reason'] or ''}"
        f"{' (forced)' if row['forced'] else ''} |"
        for row in sorted(rows, key=lambda row: row["changed_at"], reverse=True)
    ]
    return "\n".join(["| when, UTC | version | stage | aliases | who | why |", "|---|---|---|---|---|---|", *lines])


@dg.asset(deps=["model_evaluations"], kinds={"deltalake", "mlflow"}, pool="stage_history")
def stage_history(delta_tables: DeltaTables, model_registry: ModelRegistry) -> dg.MaterializeResult:
    """Who moved which model version from where to where, when and why; changes made in MLflow are noticed."""
    before = delta_tables.snapshot(STAGE_HISTORY)
    record_changes(model_registry.versions(), delta_tables.thin)
    rows = delta_tables.thin.read(STAGE_HISTORY, STAGE_HISTORY.columns.fieldNames()).to_pylist()
    change = delta_tables.change_since(before, STAGE_HISTORY)
    return delta_tables.materialized(STAGE_HISTORY, change, changes=dg.MetadataValue.md(to_markdown(rows)))
