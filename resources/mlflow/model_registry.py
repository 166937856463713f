"""Registered models: versions, stages, aliases."""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from resources.mlflow.registry_errors import RegistryUnavailable, refusals_explained
from resources.mlflow.stage_moves import ALIASES, ARCHIVED_STAGE, SERVING_STAGE, SHADOW_STAGE, STAGES, StageMoves

MODEL_NAME = "image_classifier"
FILES_DIGEST = "files_digest"  # the tag of a version that says what was logged
ADDED_BY_THE_REGISTRY = frozenset({"registered_model_meta"})  # MLflow writes it beside a version that is downloaded


def files_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below the folder."""
    total = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in ADDED_BY_THE_REGISTRY:
            with file.open("rb") as opened:
                total.update(f"{name}\0{file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


class ModelPackages(dg.ConfigurableResource):
    """The folder in which packages lie, unless another place is named."""

    root: str = Field(description="Where packages are written.")

    def write(self, name: str, fill: Callable[[Path], None], elsewhere: str | None = None) -> Path:
        """The folder that a function filled; it gets its name when all is in it, and is not there when it failed."""
        folder = Path(elsewhere or Path(self.root, name)).expanduser().absolute()
        if folder.exists():
            raise FileExistsError(f"{folder} is there already, nothing was written: remove it, or name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            unfinished = Path(scratch, folder.name)
            unfinished.mkdir()
            fill(unfinished)
            return unfinished.rename(folder)


if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pyspark.sql import Column, SparkSession
    from pyspark.sql.types import StructType

CONNECT_SECONDS = 5
VERSIONS_PER_PAGE = 100
SQLITE = "sqlite:///"
NEVER = datetime.min.replace(tzinfo=UTC)
READ_MODEL, EDIT_MODEL = "READ on the registered model", "EDIT on the registered model"
MOVE_MODEL = "MANAGE on the registered model, or EDIT where no alias has to be taken away,"
READ_FILES = "READ on the registered model and on the experiment"


class DamagedVersion(RuntimeError):
    """The files of a version are not those that were logged."""


class UnclearServingVersion(RuntimeError):
    """The registry names several versions where one can serve."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model."""

    version: int
    stage: str
    aliases: tuple[str, ...]
    mlflow_run_id: str
    uri: str
    tags: dict[str, str]
    moved_at: datetime = field(default=NEVER, compare=False)  # by MLflow's clock, UTC
    name: str = MODEL_NAME  # of the registered model

    @property
    def labels(self) -> list[str]:
        """The labels that it tells apart, in the order of its probabilities; none where its tags do not say them."""
        return json.loads(self.tags.get("labels", "[]"))

    @property
    def live(self) -> bool:
        """Whether it may still be asked for: it is not archived, or an alias names it."""
        return self.stage != ARCHIVED_STAGE or bool(self.aliases)


class ModelRegistry(dg.ConfigurableResource):
    """The versions of one registered model, as the MLflow model registry keeps them.

    **The stage decides which version serves.** Promoting here moves the stage and then the alias `production`, so that
    both name the same version. When they differ, because somebody moved one of them in MLflow or a promotion was
    killed between the two, the version in stage Production serves, and `disagreement` reports the alias; promoting
    either version brings them together. When somebody put several versions into Production, the alias decides.
    """

    tracking_uri: str = Field(description="Where the registry's API answers, or `sqlite:///` and a file.")
    name: str = Field(default=MODEL_NAME, description="The registered model.")

    def register(self, model_uri: str, mlflow_run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """A new version for a logged model. It appears with all its tags, `mlflow_run_id` among them, or not at all."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)  # register_model knows no other way to be told
        with self._refusals("register a version", EDIT_MODEL):
            registered = mlflow.register_model(model_uri, self.name, tags={**tags, "mlflow_run_id": mlflow_run_id})
        return self.version(int(registered.version))

    def versions(self) -> list[ModelVersion]:
        """Every version that was not deleted, oldest first; RegistryUnavailable when there is no answer.

        MLflow lists nothing to whoever may not read: that is PermissionRefused here, and not an empty list.
        """
        self._require_answer()
        store = Path(self.tracking_uri.removeprefix(SQLITE))
        # MLflow would create the store, and whoever only looks in should leave no trace.
        if self.tracking_uri.startswith(SQLITE) and not store.exists():
            return []
        from mlflow.exceptions import MlflowException

        try:
            with self._refusals("list the versions", READ_MODEL):
                return self._listed(self._client())
        except MlflowException as error:
            raise RegistryUnavailable(f"the model registry at {self._address} gave no list: {error}") from error

    def version(self, number: int) -> ModelVersion:
        """The version of this number; a ValueError names the versions there are."""
        versions = {version.version: version for version in self.versions()}
        if number not in versions:
            existing = ", ".join(map(str, versions)) or "none yet: train a model first"
            raise ValueError(f"{self.name} has no version {number}; its versions: {existing}")
        return versions[number]

    def with_tag(self, key: str, value: str) -> ModelVersion | None:
        """The newest version with this tag, in whatever stage; None when no version has it."""
        return next((version for version in reversed(self.versions()) if version.tags.get(key) == value), None)

    def serving(self) -> ModelVersion | None:
        """The version in stage Production; None when there is none, UnclearServingVersion when it cannot be told."""
        return serving_version(self.versions())

    def promote(self, number: int, stage: str, tags: Mapping[str, str] | None = None) -> ModelVersion:
        """Move a version to a stage, with the stage's alias; the version that was there is archived.

        What is told goes into the version's tags first. The stage and the archiving are one transaction, the alias
        follows. A kill between the two leaves a registry in which the new version serves; the same promotion again
        moves the alias as well. Of several promotions at once the last one's version serves, and has the alias.
        PermissionRefused comes before anything is moved.
        """
        if stage not in STAGES:
            raise ValueError(f"there is no stage {stage!r}; the stages: {', '.join(STAGES)}")
        self.version(number)
        with self._refusals(f"move version {number} to {stage}", MOVE_MODEL):
            StageMoves(self._client(), self.name, self.versions).move(number, stage, tags or {})
        return self.version(number)

    def signature(self, version: ModelVersion) -> str:
        """What the version takes and gives, as JSON."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)  # get_model_info knows no other way to be told
        with self._refusals(f"read version {version.version}", READ_FILES):
            found = mlflow.models.get_model_info(version.uri).signature
        return json.dumps(found.to_dict() if found else None, sort_keys=True)

    def download(self, model_uri: str, folder: Path) -> Path:
        """The files of a logged model or a version, copied below the folder."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with self._refusals("read the files", READ_FILES):
            # Without a folder of its own, MLflow writes into that of the model.
            return Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(folder)))

    def files_digest(self, model_uri: str) -> str:
        """SHA-256 over the files of a logged model or a version, as they are."""
        with TemporaryDirectory() as folder:
            return files_digest(self.download(model_uri, Path(folder)))

    def require_files_as_logged(self, version: ModelVersion) -> None:
        """DamagedVersion when its files are others than its tag says, or are gone; without the tag nobody can tell."""
        from mlflow.exceptions import MlflowException

        logged = version.tags.get(FILES_DIGEST)
        if logged is None:
            return
        try:
            found = self.files_digest(version.uri)
        except (MlflowException, OSError) as error:
            found = str(error)
        if found != logged:
            raise DamagedVersion(
                f"the files of version {version.version} of {self.name} are not those that were logged: found {found}, "
                f"expected SHA-256 {logged}. Restore them, or promote another version"
            )

    def stages(self) -> dict[int, str]:
        """The stage of each version."""
        return {version.version: version.stage for version in self.versions()}

    def state(self) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
        """Number, stage and aliases of each version: equal as long as nobody moved anything."""
        return tuple((version.version, version.stage, version.aliases) for version in self.versions())

    def scoring_udf(
        self, spark: "SparkSession", version: ModelVersion, result: "StructType", device: str
    ) -> "Callable[[Column], Column]":
        """A column function: a struct of `content` and `path` in, what the version answers out."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)  # spark_udf knows no other way to be told
        config = {"device": device}
        options = {"result_type": result, "env_manager": "local", "model_config": config}
        with self._refusals(f"load version {version.version}", READ_FILES):
            udf = mlflow.pyfunc.spark_udf(spark, version.uri, **options)
        return cast("Callable[[Column], Column]", udf)

    @property
    def _address(self) -> str:
        """The tracking URI without the password that it may hold."""
        parts = urlsplit(self.tracking_uri)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or ''}" if parts.hostname else self.tracking_uri

    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def _refusals(self, what: str, permission: str) -> AbstractContextManager[None]:
        return refusals_explained(self._address, f"{what} of {self.name}", permission)

    def _require_answer(self) -> None:
        """Knock first: MLflow itself tries for minutes before it gives up, longer than a sensor's tick may take."""
        parts = urlsplit(self.tracking_uri)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if not parts.hostname or not port:
            return
        try:
            socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise RegistryUnavailable(
                f"the model registry at {self._address} does not answer ({error}): "
                "start it, or correct the tracking URI"
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
        return sorted(
            (
                ModelVersion(
                    version=int(version.version),
                    stage=version.current_stage,
                    aliases=tuple(sorted(alias for alias, at in aliases.items() if int(at) == int(version.version))),
                    mlflow_run_id=version.tags.get("mlflow_run_id") or version.run_id or "",
                    uri=f"models:/{self.name}/{version.version}",
                    tags=dict(version.tags),
                    moved_at=datetime.fromtimestamp((version.last_updated_timestamp or 0) / 1000, UTC),
                    name=self.name,
                )
                for version in found
            ),
            key=lambda version: version.version,
        )

    def _require_absence(self, client: "MlflowClient") -> None:
        """Raise what MLflow says of a model that it does not list, unless it says that there is none."""
        from mlflow.exceptions import MlflowException

        try:
            client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def serving_version(versions: Sequence[ModelVersion]) -> ModelVersion | None:
    """The version in stage Production; among several, the one with its alias."""
    serving = [version for version in versions if version.stage == SERVING_STAGE]
    if len(serving) > 1:
        numbers = ", ".join(str(version.version) for version in serving)
        serving = [version for version in serving if ALIASES[SERVING_STAGE] in version.aliases]
        if not serving:
            raise UnclearServingVersion(
                f"versions {numbers} are all in stage {SERVING_STAGE} and none has the alias {ALIASES[SERVING_STAGE]}: "
                "promote the one that is meant to serve"
            )
    return serving[0] if serving else None


def shadows(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The versions in stage Staging: they predict beside the serving one, and nobody follows what they say."""
    return [version for version in versions if version.stage == SHADOW_STAGE]


def version_numbers(versions: Sequence[ModelVersion]) -> str:
    """The versions' numbers."""
    return ", ".join(str(version.version) for version in versions) or "none"


def disagreement(versions: Sequence[ModelVersion]) -> str | None:
    """What to tell a person when stage Production and its alias name different versions; None when they agree."""
    alias = ALIASES[SERVING_STAGE]
    serving = serving_version(versions)
    aliased = next((version for version in versions if alias in version.aliases), None)
    if serving == aliased:
        return None
    return (
        f"stage {SERVING_STAGE} names version {serving.version if serving else 'none'}, alias {alias} names version "
        f"{aliased.version if aliased else 'none'}: the stage is followed; promote the version that is meant to serve"
    )
