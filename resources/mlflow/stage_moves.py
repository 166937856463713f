"""Moves a version to another stage together with the stage's alias, which takes several MLflow calls.

Unity Catalog has no stages. There, only the alias moves.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient

NO_STAGE = "None"
SERVING_STAGE = "Production"
SHADOW_STAGE = "Staging"
ARCHIVED_STAGE = "Archived"
STAGES = (NO_STAGE, SHADOW_STAGE, SERVING_STAGE, ARCHIVED_STAGE)
ALIASES = {SHADOW_STAGE: "staging", SERVING_STAGE: "production"}  # stage: alias
PROBE_ALIAS = "nobodys"  # never set: deleting it changes nothing but needs the permission to delete aliases
MAX_SETTLE_ROUNDS = 10  # reactions to concurrent moves


class StagedVersion(Protocol):
    """The part of a version that moves need."""

    @property
    def version(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def moved_at(self) -> datetime: ...


Version = TypeVar("Version", bound=StagedVersion)


@dataclass(frozen=True)
class StageMoves:
    """Moves versions of one registered model between stages."""

    client: "MlflowClient"
    name: str
    list_versions: Callable[[], Sequence[StagedVersion]]

    def move(self, number: int, stage: str, tags: Mapping[str, str]) -> None:
        """Moves an existing version to a stage.

        Sets its tags first; then moves it and archives the stage's previous version in one transaction; then moves the
        alias.
        """
        versions = self.list_versions()
        leaving = [alias for alias in aliases_of(number, versions) if alias != ALIASES.get(stage)]
        self._require_permissions(stage, versions, leaving)
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(number), key, value)
        if stage in ALIASES and holder(stage, versions) is None:
            self._set_alias(stage, number)  # now: without the permission, this fails before anything moved
        if self._transition(number, stage, archive_others=stage in ALIASES):
            self._settle(stage)
        elif stage in ALIASES:
            self._set_alias(stage, number)
        for alias in leaving:
            self.client.delete_registered_model_alias(self.name, alias)

    def mirror(self, stage: str, number: int | None) -> None:
        """Gives one version both the stage and its alias; None: no version has either.

        If it enters the stage, the stage's other versions are archived, as by `move`. Others that share stage Staging
        with it stay; others in stage Production never do.
        """
        versions = self.list_versions()
        current, staged = holder(stage, versions), [version.version for version in versions if version.stage == stage]
        if number is None:
            for other in staged:
                self._transition(other, NO_STAGE, archive_others=False)
            if current is not None:
                self.client.delete_registered_model_alias(self.name, ALIASES[stage])
            return
        if current is None or current.version != number:
            self._set_alias(stage, number)
        if number not in staged or (stage == SERVING_STAGE and len(staged) > 1):
            self._transition(number, stage, archive_others=True)

    def _require_permissions(self, stage: str, versions: Sequence[StagedVersion], leaving: Sequence[str]) -> None:
        """Makes calls that change nothing but need the move's permissions, so that it fails before the first change."""
        current = holder(stage, versions)
        if current is not None:
            self._set_alias(stage, current.version)
        if leaving:
            self.client.delete_registered_model_alias(self.name, PROBE_ALIAS)

    def _settle(self, stage: str) -> None:
        """Moves the stage's alias to the stage's version, until both agree.

        MLflow has no compare-and-set, so concurrent moves can put several versions into the stage. The last one to
        arrive stays. Every move ends with this step, and all of them choose the same version.
        """
        for _ in range(MAX_SETTLE_ROUNDS if stage in ALIASES else 0):
            versions = self.list_versions()
            staged = sorted((v for v in versions if v.stage == stage), key=lambda v: (v.moved_at, v.version))
            if not staged:
                return
            *others, latest = staged
            for other in others:
                self._transition(other.version, ARCHIVED_STAGE, archive_others=False)
            if holder(stage, versions) == latest:
                return
            self._set_alias(stage, latest.version)

    def _set_alias(self, stage: str, number: int) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_alias(self.name, ALIASES[stage], str(number))
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # MLflow's store reads first and inserts then. Another process inserted in between, so now MLflow updates.
            self.client.set_registered_model_alias(self.name, ALIASES[stage], str(number))

    def _transition(self, number: int, stage: str, *, archive_others: bool) -> bool:
        """Moves the version's stage; False if the registry has no stages."""
        from mlflow.exceptions import MlflowException

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MLflow deprecates stages, but we support them
            try:
                self.client.transition_model_version_stage(
                    self.name, str(number), stage, archive_existing_versions=archive_others
                )
            except NotImplementedError:  # Unity Catalog's open-source server
                return False
            except MlflowException as error:
                if "Unity Catalog" not in error.message:  # its error has no code of its own
                    raise
                return False
        return True


def aliases_of(number: int, versions: Sequence[StagedVersion]) -> list[str]:
    """The stage aliases that a version has."""
    return [alias for each in versions if each.version == number for alias in each.aliases if alias in ALIASES.values()]


def holder(stage: str, versions: Sequence[Version]) -> Version | None:
    """The version with the stage's alias."""
    return next((version for version in versions if ALIASES.get(stage) in version.aliases), None)


def stage_of(aliases: Iterable[str]) -> str:
    """The stage of a version in a registry without stages."""
    return next((stage for stage in (SERVING_STAGE, SHADOW_STAGE) if ALIASES[stage] in aliases), NO_STAGE)
