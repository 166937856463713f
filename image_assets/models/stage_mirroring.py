"""Keeps MLflow's aliases and stages in step: people move either of them, and the other one follows.

The move that came last wins, by `stage_history`. If both were moved since the last look, the alias wins.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from image_assets.models.stage_history import read_history, record_changes
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import (
    ALIASES,
    NEVER,
    SERVING_STAGE,
    SHADOW_STAGE,
    ModelRegistry,
    ModelVersion,
)
from resources.mlflow.stage_moves import holder

HistoryRow = Mapping[str, Any]  # Any: a row's values are of several types


def mirror_moves(registry: ModelRegistry, delta_tables: DeltaTables) -> list[ModelVersion]:
    """Records all moves, lets aliases and stages follow each other, and returns the versions as they are then.

    Raises:
        PermissionRefused: The account may not move what has to follow. The moves are recorded.
    """
    versions = registry.versions()
    record_changes(registry.name, versions, delta_tables)
    for stage in (SERVING_STAGE, SHADOW_STAGE):
        if in_step(stage, versions):
            continue
        decided, version = winner(stage, versions, read_history(registry.name, delta_tables))
        if decided:
            registry.mirror(stage, version.version if version else None)
            versions = registry.versions()
            record_changes(registry.name, versions, delta_tables, mirrored=f"{ALIASES[stage]} and {stage} in step")
    return versions


def in_step(stage: str, versions: Sequence[ModelVersion]) -> bool:
    """Whether the version with the alias is in the stage. Other versions may be in Staging, but not in Production."""
    aliased, staged = holder(stage, versions), _staged(stage, versions)
    if aliased is None or not staged:
        return aliased is None and not staged
    return aliased in staged and (stage == SHADOW_STAGE or len(staged) == 1)


def winner(
    stage: str, versions: Sequence[ModelVersion], history: Sequence[HistoryRow]
) -> tuple[bool, ModelVersion | None]:
    """The version that should have both the stage and its alias (None: no version), if that can be decided.

    Args:
        stage: Production or Staging, where alias and stage differ.
        versions: All versions.
        history: The rows of stage_history, with the current state of every version.
    """
    aliased, staged = holder(stage, versions), _staged(stage, versions)
    if stage == SHADOW_STAGE and aliased is not None and aliased == holder(SERVING_STAGE, versions):
        aliased = None  # it cannot be its own shadow
        alias_moved = NEVER
    else:
        alias_moved = max(_last_moves(history, lambda row: ALIASES[stage] in row["aliases"]).values(), default=NEVER)
    stage_moves = _last_moves(history, lambda row: row["to_stage"] == stage)
    if alias_moved >= max(stage_moves.values(), default=NEVER):
        return True, aliased
    entered = {version.version: stage_moves.get((version.version, version.version_id), NEVER) for version in staged}
    latest = [version for version in staged if entered[version.version] == max(entered.values())]
    if len(latest) > 1:
        return aliased in latest, aliased
    return True, latest[0] if latest else None


def _staged(stage: str, versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    return [version for version in versions if version.stage == stage]


def _last_moves(
    history: Sequence[HistoryRow], included: Callable[[HistoryRow], bool]
) -> dict[tuple[int, str], datetime]:
    """When each version last entered or left what the condition describes."""
    moves, before = {}, {}
    for row in history:
        key, now = (row["model_version"], row["version_id"]), included(row)
        if now != before.get(key, False):
            moves[key] = row["changed_at"]
        before[key] = now
    return moves
