"""The MLflow model registry: versions, stages, aliases and files of the registered model."""

import json
import os
import pwd
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from resources.mlflow.mlflow_tracking import SQLITE, RegistryUnavailable, refusals_explained
from resources.mlflow.model_files import MODEL_NAME, download_files, files_digest, is_stored_as_code
from resources.mlflow.stage_moves import (
    ALIASES,
    ARCHIVED_STAGE,
    SERVING_STAGE,
    SHADOW_STAGE,
    STAGES,
    StagedVersion,
    StageMoves,
    holder,
    stage_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pyspark.sql import Column, SparkSession
    from pyspark.sql.types import StructType

FILES_DIGEST = "files_digest"  # the version tag with the hash of the logged files
CONNECT_SECONDS = 5
VERSIONS_PER_PAGE = 100
NEVER = datetime.min.replace(tzinfo=UTC)
READ_MODEL, EDIT_MODEL = "READ on the registered model", "EDIT on the registered model"
MOVE_MODEL = "MANAGE on the registered model (EDIT is enough if no alias must be removed)"
READ_FILES = "READ on the registered model and on the experiment"


class DamagedVersion(RuntimeError):
    """The files of a version changed after they were logged, or must not be loaded."""


class UnclearServingVersion(RuntimeError):
    """Several versions are in stage Production, and none has the alias `production`."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model."""

    version: int
    stage: str
    aliases: tuple[str, ...]
    mlflow_run_id: str
    uri: str
    tags: dict[str, str]
    moved_at: datetime = field(default=NEVER, compare=False)  # UTC, by MLflow's clock
    name: str = MODEL_NAME  # of the registered model
    created_at: datetime | None = field(default=None, compare=False)  # UTC, by MLflow's clock
    description: str = field(default="", compare=False)

    @property
    def version_id(self) -> str:
        """What the version is, whatever its number: the hash of its files, else its MLflow run or creation time."""
        created = self.created_at.isoformat() if self.created_at else ""
        return self.tags.get(FILES_DIGEST) or self.mlflow_run_id or created

    @property
    def labels(self) -> list[str]:
        """Its labels, in the order of its probabilities; empty if its tags have none, or anything else."""
        try:
            labels = json.loads(self.tags.get("labels", "[]"))
        except ValueError:
            return []
        return labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []

    @property
    def live(self) -> bool:
        """Whether it may still be used: it is not archived, or has an alias."""
        return self.stage != ARCHIVED_STAGE or bool(self.aliases)


class ModelRegistry(dg.ConfigurableResource):
    """The versions of one registered model in the MLflow model registry.

    **The alias `production` decides which version serves**, and the stage mirrors it. Promoting here moves both. Where
    they differ, because someone moved one of them in MLflow or a promotion was killed, `disagreement` reports it until
    `mirror` has moved the other one. Without the alias, the version in stage Production serves. Unity Catalog has no
    stages: there, each version has the stage of its alias.
    """

    tracking_uri: str = Field(description="The address of the MLflow server, or `sqlite:///` and a file.")
    name: str = Field(default=MODEL_NAME, description="The name of the registered model.")

    def register(self, model_uri: str, mlflow_run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Registers a logged model as a new version, which appears with all its tags, including `mlflow_run_id`."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)  # register_model has no parameter for it
        with self._refusals("register a version", EDIT_MODEL):
            registered = mlflow.register_model(model_uri, self.name, tags={**tags, "mlflow_run_id": mlflow_run_id})
        return self.version(int(registered.version))

    def versions(self) -> list[ModelVersion]:
        """All versions that were not deleted, oldest first.

        Raises:
            RegistryUnavailable: The registry cannot be reached, or returns an error.
            PermissionRefused: This account may not read the model. MLflow itself would return an empty list.
        """
        self._require_answer()
        store = Path(self.tracking_uri.removeprefix(SQLITE))
        # MLflow would create the store; reading should not.
        if self.tracking_uri.startswith(SQLITE) and not store.exists():
            return []
        from mlflow.exceptions import MlflowException

        try:
            with self._refusals("list the versions", READ_MODEL):
                return self._listed(self._client())
        except MlflowException as error:
            raise RegistryUnavailable(
                f"the model registry at {self.address} could not list the versions: {error}"
            ) from error

    def version(self, number: int) -> ModelVersion:
        """The version with this number; a ValueError lists the existing versions if there is none."""
        versions = {version.version: version for version in self.versions()}
        if number not in versions:
            existing = ", ".join(map(str, versions)) or "none yet: train a model first"
            raise ValueError(f"{self.name} has no version {number}; existing versions: {existing}")
        return versions[number]

    def with_tag(self, key: str, value: str) -> ModelVersion | None:
        """The newest version with this tag, in any stage; None if there is none."""
        return next((version for version in reversed(self.versions()) if version.tags.get(key) == value), None)

    def serving(self) -> ModelVersion | None:
        """The version with the alias `production`, else the one in stage Production; None if there is none."""
        return serving_version(self.versions())

    def promote(self, number: int, stage: str, tags: Mapping[str, str] | None = None) -> ModelVersion:
        """Moves a version to a stage, together with the stage's alias, and archives the stage's previous version.

        Sets the tags first, then moves the version and archives the other one in one transaction, then moves the alias.
        If the process is killed before the alias moves, the new version serves; repeating the promotion moves the alias
        too. If several promotions run at once, the last one's version serves and gets the alias.

        Raises:
            PermissionRefused: The account may not do this. Nothing was moved.
        """
        if stage not in STAGES:
            raise ValueError(f"there is no stage {stage!r}: expected one of {', '.join(STAGES)}")
        self.version(number)
        with self._refusals(f"move version {number} to {stage}", MOVE_MODEL):
            StageMoves(self._client(), self.name, self.versions).move(number, stage, tags or {})
        return self.version(number)

    def mirror(self, stage: str, number: int | None) -> None:
        """Gives one version both a stage and its alias, where they differ; with None, no version has either.

        Raises:
            PermissionRefused: The account may not do this.
        """
        moves = f"move stage {stage} and its alias to version {number}"
        with self._refusals(moves if number else f"clear stage {stage} and its alias", MOVE_MODEL):
            StageMoves(self._client(), self.name, self.versions).mirror(stage, number)

    def describe(self, number: int, description: str) -> None:
        """Sets a version's description, as Markdown."""
        with self._refusals(f"describe version {number}", "EDIT on the registered model's version"):
            self._client().update_model_version(self.name, str(number), description)

    def signature(self, version: ModelVersion) -> str:
        """The version's MLflow signature (inputs and outputs), as JSON."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)  # get_model_info has no parameter for it
        with self._refusals(f"read version {version.version}", READ_FILES):
            found = mlflow.models.get_model_info(version.uri).signature
        return json.dumps(found.to_dict() if found else None, sort_keys=True)

    def columns(self, version: ModelVersion) -> list[str]:
        """The columns that the version returns according to its signature; none if it has none."""
        outputs = (json.loads(self.signature(version)) or {}).get("outputs")
        return [column.get("name", "") for column in json.loads(outputs or "[]")]

    def has_files(self, version: ModelVersion) -> bool:
        """Whether any of the version's files are left; `require_files_as_logged` also compares them."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with self._refusals("list the files", READ_FILES):
            return bool(mlflow.artifacts.list_artifacts(artifact_uri=version.uri))

    def download(self, model_uri: str, folder: Path) -> Path:
        """See `download_files`."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with self._refusals("read the files", READ_FILES):
            return download_files(model_uri, folder)

    def files_digest(self, model_uri: str) -> str:
        """SHA-256 of the current files of a logged model or a version."""
        with TemporaryDirectory() as folder:
            return files_digest(self.download(model_uri, Path(folder)))

    def require_files_as_logged(self, version: ModelVersion) -> None:
        """Raises DamagedVersion unless the version's files are the ones that were logged, and its model is code.

        Whoever may register versions and change stages can put any file there, so call it before a version is loaded.
        """
        from mlflow.exceptions import MlflowException

        logged, named = version.tags.get(FILES_DIGEST), f"version {version.version} of {self.name}"
        if logged is None:
            raise DamagedVersion(
                f"{named} has no tag {FILES_DIGEST}, so its files may be anything and are not loaded. Train a version "
                "here, or launch promote_model for this one with `force: true`, which records its current files"
            )
        with TemporaryDirectory() as folder:
            files = Path(folder)
            try:
                files = self.download(version.uri, files)
                found = files_digest(files)
            except (MlflowException, OSError) as error:
                found = str(error)
            if found != logged:
                raise DamagedVersion(
                    f"the files of {named} changed after they were logged: found {found}, expected SHA-256 {logged}. "
                    "Restore the files, or promote another version"
                )
            if not is_stored_as_code(files):
                raise DamagedVersion(
                    f"{named} is not stored as code, and loading a pickle can run anything. Log the model from a "
                    "Python file (MLflow's models-from-code) and register it again"
                )

    def state(self) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
        """Number, stage and aliases of each version; changes if anything is moved."""
        return tuple((version.version, version.stage, version.aliases) for version in self.versions())

    def scoring_udf(
        self, spark: "SparkSession", version: ModelVersion, result: "StructType", device: str
    ) -> "Callable[[Column], Column]":
        """A column function that maps a struct of `content` and `path` to a prediction of the type `result`."""
        import mlflow

        config = {"device": device}
        options = {"result_type": result, "env_manager": "local", "model_config": config}
        with TemporaryDirectory() as folder:
            files = self.download(version.uri, Path(folder))
            udf = mlflow.pyfunc.spark_udf(spark, str(files), **options)  # makes a copy of its own
        return cast("Callable[[Column], Column]", udf)

    @property
    def account(self) -> str:
        """The account of this process: that on the MLflow server, else the operating system's."""
        from mlflow.utils.credentials import read_mlflow_creds

        username = None if self.tracking_uri.startswith(SQLITE) else read_mlflow_creds().username
        try:
            # Not getpass: it believes variables of the environment.
            return username or pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # as in containers
            return f"user {os.getuid()}"

    @property
    def address(self) -> str:
        """The tracking URI without a password."""
        parts = urlsplit(self.tracking_uri)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or ''}" if parts.hostname else self.tracking_uri

    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def _refusals(self, what: str, permission: str) -> AbstractContextManager[None]:
        return refusals_explained(self.address, f"{what} of {self.name}", permission)

    def _require_answer(self) -> None:
        """Checks the connection first: MLflow retries for minutes, which is longer than a sensor's tick may take."""
        parts = urlsplit(self.tracking_uri)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if not parts.hostname or not port:
            return
        try:
            socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise RegistryUnavailable(
                f"the model registry at {self.address} does not answer ({error}): "
                "start it, or correct MLFLOW_TRACKING_URI"
            ) from error

    def _listed(self, client: "MlflowClient") -> list[ModelVersion]:
        filter_string = f"name = '{self.name}'"
        models = client.search_registered_models(filter_string)
        if not models and not self.tracking_uri.startswith(SQLITE):
            self._require_absence(client)
        aliases = models[0].aliases if models else {}
        found, token = [], None
        while models:
            page = client.search_model_versions(filter_string, VERSIONS_PER_PAGE, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                break
        names = {
            version.version: tuple(sorted(alias for alias, at in aliases.items() if int(at) == int(version.version)))
            for version in found
        }
        return sorted(
            (
                ModelVersion(
                    version=int(version.version),
                    stage=version.current_stage or stage_of(names[version.version]),
                    aliases=names[version.version],
                    mlflow_run_id=version.tags.get("mlflow_run_id") or version.run_id or "",
                    uri=f"models:/{self.name}/{version.version}",
                    tags=dict(version.tags),
                    moved_at=datetime.fromtimestamp((version.last_updated_timestamp or 0) / 1000, UTC),
                    name=self.name,
                    created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
                    description=version.description or "",
                )
                for version in found
            ),
            key=lambda version: version.version,
        )

    def _require_absence(self, client: "MlflowClient") -> None:
        """Raises MLflow's error for a model that it does not list, unless the model does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def serving_version(versions: Sequence[ModelVersion]) -> ModelVersion | None:
    """The version with the alias `production`; if no version has it, the one in stage Production."""
    found = _in_production(versions)
    if len(found) > 1:
        raise UnclearServingVersion(
            f"versions {version_numbers(found)} are all in stage {SERVING_STAGE} and none has the alias "
            f"{ALIASES[SERVING_STAGE]}: promote the one that should serve"
        )
    return found[0] if found else None


def _in_production(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    aliased = [version for version in versions if ALIASES[SERVING_STAGE] in version.aliases]
    return aliased or [version for version in versions if version.stage == SERVING_STAGE]


def shadows(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The versions with the alias or stage of Staging: they predict too, but only for comparison."""
    serving = _in_production(versions)
    staged = (SHADOW_STAGE, ALIASES[SHADOW_STAGE])
    return [one for one in versions if one not in serving and {one.stage, *one.aliases}.intersection(staged)]


def version_numbers(versions: Sequence[ModelVersion]) -> str:
    """The versions' numbers, separated by commas."""
    return ", ".join(str(version.version) for version in versions) or "none"


def disagreement(versions: Sequence[ModelVersion]) -> str | None:
    """A message if stage Production and its alias are on different versions, or None."""
    alias, aliased = ALIASES[SERVING_STAGE], holder(SERVING_STAGE, versions)
    staged = [version for version in versions if version.stage == SERVING_STAGE]
    if staged == ([aliased] if aliased else []):
        return None
    decides = "The alias decides" if aliased else "Without the alias, the stage decides"
    return (
        f"Alias {alias} is on {to_text(aliased)}, but stage {SERVING_STAGE} has version {version_numbers(staged)}. "
        f"{decides}; promote the version that should serve."
    )


def to_text(version: StagedVersion | None) -> str:
    """`version 3` or `no version`."""
    return f"version {version.version}" if version else "no version"
