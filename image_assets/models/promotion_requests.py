"""Requests to promote a version, which another account approves or rejects: rows of stage_history."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.models.promotion_gate import GateFinding
from image_assets.models.stage_history import NOWHERE, HistoryRow, read_history, record_changes, to_row
from image_assets.models.version_ids import of_version
from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelRegistry, ModelVersion

REQUESTED, APPROVED, REJECTED = "requested", "approved", "rejected"
Step = Literal["requested", "approved", "rejected"]
MAX_ATTEMPTS = 10  # to write a row, while others write rows of the same version


@dataclass(frozen=True)
class PromotionRequest:
    """A request to move a version to a stage."""

    stage: str
    account: str
    person: str | None
    reason: str
    requested_at: datetime
    promotion_id: str

    @property
    def by(self) -> str:
        """Who made it."""
        return f"{self.person} (account {self.account})" if self.person else f"account {self.account}"


@dataclass(frozen=True)
class RequestStep:
    """A request, or the decision on one."""

    step: Step
    stage: str
    source: str
    account: str
    person: str | None
    reason: str
    promotion_id: str = ""  # of the request that is decided
    findings: Sequence[GateFinding] | None = None


def waiting_request(version: ModelVersion, history: Sequence[HistoryRow]) -> PromotionRequest | None:
    """The version's last request, unless it was decided. A new request replaces an earlier one."""
    of_this = [row for row in history if (row["model_version"], row["version_id"]) == key_in_history(version)]
    steps = [row for row in of_this if row["request"]]
    if not steps or steps[-1]["request"] != REQUESTED:
        return None
    row = steps[-1]
    return PromotionRequest(
        row["requested_stage"], row["account"], row["person"], row["reason"], row["changed_at"], row["promotion_id"]
    )


def record_step(step: RequestStep, version: ModelVersion, registry: ModelRegistry, delta_tables: DeltaTables) -> None:
    """Adds a row to stage_history. It repeats the version's stage and aliases, which a request does not change."""
    by = {
        "source": step.source,
        "person": step.person,
        "account": step.account,
        "reason": step.reason,
        "forced": False,
        "findings": None if step.findings is None else [one.to_row() for one in step.findings],
        "promotion_id": step.promotion_id or uuid4().hex,
        "request": step.step,
        "requested_stage": step.stage,
    }
    for _ in range(MAX_ATTEMPTS):
        record_changes(registry.name, registry.versions(), delta_tables)
        rows = read_history(registry.name, delta_tables)
        of_this = [row for row in rows if (row["model_version"], row["version_id"]) == key_in_history(version)]
        before = of_this[-1] if of_this else {"to_stage": NOWHERE, "aliases": [], "change": 0}
        same = (before["to_stage"], before["aliases"])
        row = {"model_name": registry.name, **to_row(key_in_history(version), before, same, by, datetime.now(UTC))}
        columns = to_arrow_schema(STAGE_HISTORY.columns)
        delta_tables.merge(pa.Table.from_pylist([row], columns), STAGE_HISTORY, updates={})
        # Another process may have written a row of this number first; then the merge added nothing.
        this_number = of_version(version) & (pc.field("change") == row["change"])
        written = delta_tables.read(STAGE_HISTORY, ["promotion_id", "request"], this_number).to_pylist()
        if written == [{"promotion_id": by["promotion_id"], "request": step.step}]:
            return
    raise RuntimeError(
        f"other processes kept adding rows of version {version.version} to {STAGE_HISTORY.name}: launch the job again"
    )


def key_in_history(version: ModelVersion) -> tuple[int, str]:
    """What tells a version from others in stage_history."""
    return version.version, version.version_id
