"""How a version gets to another stage, with the alias that goes with it: several calls of MLflow's as one move."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVING_STAGE = "Production"
SHADOW_STAGE = "Staging"
ARCHIVED_STAGE = "Archived"
STAGES = ("None", SHADOW_STAGE, SERVING_STAGE, ARCHIVED_STAGE)
ALIASES = {SHADOW_STAGE: "staging", SERVING_STAGE: "production"}  # the alias that goes with a stage
PROBE_ALIAS = "nobodys"
MAX_SETTLE_ROUNDS = 10  # at what others moved at the same time


class StagedVersion(Protocol):
    """A version, as far as its place is concerned."""

    @property
    def version(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def moved_at(self) -> datetime: ...


@dataclass(frozen=True)
class StageMoves:
    """Moves of the versions of one registered model."""

    client: "MlflowClient"
    name: str
    list_versions: Callable[[], Sequence[StagedVersion]]

    def move(self, number: int, stage: str, tags: Mapping[str, str]) -> None:
        """Move a version that exists. What is told goes into its tags first; the stage and the archiving of the version
        that was there are one transaction, the alias follows."""
        versions = self.list_versions()
        leaving = [alias for alias in aliases_of(number, versions) if alias != ALIASES.get(stage)]
        self._require_permissions(stage, versions, leaving)
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(number), key, value)
        if stage in ALIASES and holder(stage, versions) is None:
            self._set_alias(stage, number)  # here, as whoever may not is refused while nothing was moved
        self._transition(number, stage, archive_others=stage in ALIASES)
        self._settle(stage)
        for alias in leaving:
            self.client.delete_registered_model_alias(self.name, alias)

    def _require_permissions(self, stage: str, versions: Sequence[StagedVersion], leaving: Sequence[str]) -> None:
        """Ask for what the move will ask for, in calls that change nothing: a refusal comes before the first change."""
        held = holder(stage, versions)
        if held is not None:
            self._set_alias(stage, held.version)
        if leaving:
            self.client.delete_registered_model_alias(self.name, PROBE_ALIAS)

    def _settle(self, stage: str) -> None:
        """Give the stage's alias to the version that is there, until both agree.

        Others may move versions at the same time, and MLflow compares nothing before it moves. Of several versions that
        came into the stage in this way the last one stays. Each move ends with this, and all come to the same version.
        """
        for _ in range(MAX_SETTLE_ROUNDS if stage in ALIASES else 0):
            versions = self.list_versions()
            here = sorted((v for v in versions if v.stage == stage), key=lambda v: (v.moved_at, v.version))
            if not here:
                return
            *others, stays = here
            for other in others:
                self._transition(other.version, ARCHIVED_STAGE, archive_others=False)
            if holder(stage, versions) == stays:
                return
            self._set_alias(stage, stays.version)

    def _set_alias(self, stage: str, number: int) -> None:
        self.client.set_registered_model_alias(self.name, ALIASES[stage], str(number))

    def _transition(self, number: int, stage: str, *, archive_others: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated, and part of what we promise
            self.client.transition_model_version_stage(
                self.name, str(number), stage, archive_existing_versions=archive_others
            )


def aliases_of(number: int, versions: Sequence[StagedVersion]) -> list[str]:
    """The aliases of a version that go with stages."""
    return [alias for each in versions if each.version == number for alias in each.aliases if alias in ALIASES.values()]


def holder(stage: str, versions: Sequence[StagedVersion]) -> StagedVersion | None:
    """The version that has the stage's alias."""
    return next((version for version in versions if ALIASES.get(stage) in version.aliases), None)
