"""Tests of the model registry: versions, stages, aliases, and their disagreements."""

import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import NoReturn

import mlflow
import pytest
from mlflow import MlflowClient

from resources.mlflow.model_registry import (
    FILES_DIGEST,
    VERSIONS_PER_PAGE,
    DamagedVersion,
    ModelRegistry,
    ModelVersion,
    RegistryUnavailable,
    UnclearServingVersion,
    disagreement,
    serving_version,
)
from resources.mlflow.stage_moves import StageMoves, stage_of
from tests.support.registered_versions import registered, saved_model, saved_pickle, stages

CLASSIFIER = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Classifier(PythonModel):
    def predict(self, context, model_input: list[bytes], params=None):
        return ["rose"] * len(model_input)


set_model(Classifier())
"""


@pytest.fixture(scope="session")
def store_with_a_model(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, str, str]:
    """A store with one logged model, its URI and its run. MLflow takes seconds to make one, so the tests copy it."""
    folder = tmp_path_factory.mktemp("store_with_a_model")
    (folder / "classifier.py").write_text(dedent(CLASSIFIER))
    shutil.copy(empty_store, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("image_assets", (folder / "artifacts").as_uri()))
    with mlflow.start_run() as run:
        model = mlflow.pyfunc.log_model(
            name="classifier", python_model=str(folder / "classifier.py"), pip_requirements=["mlflow"]
        )
    return folder / "mlflow.db", model.model_uri, run.info.run_id


@pytest.fixture
def registry(tmp_path: Path, store_with_a_model: tuple[Path, str, str]) -> ModelRegistry:
    shutil.copy(store_with_a_model[0], tmp_path / "mlflow.db")
    return ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def three_versions(registry: ModelRegistry, store_with_a_model: tuple[Path, str, str]) -> ModelRegistry:
    _, model_uri, mlflow_run_id = store_with_a_model
    for framework in ("tensorflow", "torch", "torch"):
        registry.register(model_uri, mlflow_run_id, {"framework": framework})
    return registry


def client(registry: ModelRegistry) -> MlflowClient:
    return MlflowClient(registry.tracking_uri, registry.tracking_uri)


def version(number: int, stage: str, *aliases: str) -> ModelVersion:
    return ModelVersion(number, stage, aliases, "", f"models:/image_classifier/{number}", {})


def test_a_registered_version_has_its_tags_run_and_address(
    registry: ModelRegistry, store_with_a_model: tuple[Path, str, str]
) -> None:
    _, model_uri, mlflow_run_id = store_with_a_model
    registered = registry.register(model_uri, mlflow_run_id, {"framework": "torch"})
    assert registered == ModelVersion(
        version=1,
        stage="None",
        aliases=(),
        mlflow_run_id=mlflow_run_id,
        uri="models:/image_classifier/1",
        tags={"framework": "torch", "mlflow_run_id": mlflow_run_id},
    )
    assert mlflow.pyfunc.load_model(registered.uri).predict([b"not an image"]) == ["rose"]


def test_a_registry_without_the_model_has_no_versions(registry: ModelRegistry) -> None:
    assert registry.versions() == []
    assert registry.serving() is None
    assert registry.with_tag("framework", "torch") is None
    assert stages(registry) == {}
    assert registry.state() == ()


def test_reading_does_not_create_a_store(tmp_path: Path) -> None:
    assert ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}").versions() == []
    assert list(tmp_path.iterdir()) == []


def test_every_page_of_versions_is_read(registry: ModelRegistry) -> None:
    client(registry).create_registered_model(registry.name)
    client(registry).create_registered_model("image_classifier_2")
    for _ in range(VERSIONS_PER_PAGE + 1):
        client(registry).create_model_version(registry.name, "file:///nowhere")
    client(registry).create_model_version("image_classifier_2", "file:///nowhere")
    assert [found.version for found in registry.versions()] == list(range(1, VERSIONS_PER_PAGE + 2))


def test_the_newest_version_with_a_tag_is_found_and_deleted_ones_are_not(three_versions: ModelRegistry) -> None:
    found = three_versions.with_tag("framework", "torch")
    assert found
    assert found.version == 3
    client(three_versions).delete_model_version(three_versions.name, "3")
    found = three_versions.with_tag("framework", "torch")
    assert found
    assert found.version == 2
    assert three_versions.with_tag("framework", "jax") is None


def test_promotion_moves_stage_and_alias_and_archives_the_former_version(three_versions: ModelRegistry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert three_versions.promote(1, "Production").aliases == ("production",)
        assert three_versions.promote(3, "Production").aliases == ("production",)
    assert three_versions.state() == ((1, "Archived", ()), (2, "None", ()), (3, "Production", ("production",)))
    assert three_versions.serving() == three_versions.version(3)
    assert client(three_versions).get_model_version_by_alias(three_versions.name, "production").version in (3, "3")


def test_a_version_that_leaves_a_stage_leaves_its_alias(three_versions: ModelRegistry) -> None:
    three_versions.promote(2, "Staging")
    assert three_versions.state()[1] == (2, "Staging", ("staging",))
    three_versions.promote(2, "Production")
    assert three_versions.state()[1] == (2, "Production", ("production",))
    three_versions.promote(2, "Archived")
    assert three_versions.state()[1] == (2, "Archived", ())
    assert three_versions.serving() is None


def test_a_promotion_killed_between_stage_and_alias_serves_when_both_are_in_step(three_versions: ModelRegistry) -> None:
    three_versions.promote(1, "Production")
    three_versions.promote(2, "Production")
    client(three_versions).set_registered_model_alias(three_versions.name, "production", "1")
    assert three_versions.serving() == three_versions.version(1)
    assert "Alias production is on version 1, but stage Production has version 2. The alias decides" in (
        disagreement(three_versions.versions()) or ""
    )
    three_versions.mirror("Production", 2)
    assert disagreement(three_versions.versions()) is None
    assert three_versions.serving() == three_versions.version(2)


def test_an_unknown_version_or_stage_is_reported_with_those_that_exist(three_versions: ModelRegistry) -> None:
    with pytest.raises(ValueError, match="no version 9; existing versions: 1, 2, 3"):
        three_versions.promote(9, "Production")
    with pytest.raises(ValueError, match="'production': expected one of None, Staging, Production, Archived"):
        three_versions.promote(1, "production")
    assert set(stages(three_versions).values()) == {"None"}


def test_an_unreachable_registry_fails_at_once_without_showing_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(RegistryUnavailable, match=f"http://127.0.0.1:{port} does not answer") as raised:
        ModelRegistry(tracking_uri=f"http://user:secret@127.0.0.1:{port}").serving()
    assert "secret" not in str(raised.value)


def changed(file: Path) -> None:
    file.write_text(file.read_text() + "\n# longer")


def renamed(file: Path) -> None:
    file.rename(file.with_name(f"another {file.name}"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a changed file": changed,
    "a renamed file": renamed,
    "a file that is gone": Path.unlink,
    "one more file": lambda file: (file.parent / "more.py").write_text(""),
    "no file at all": lambda file: shutil.rmtree(file.parent),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_version_whose_files_are_not_those_that_were_logged_is_refused(
    registry: ModelRegistry, tmp_path: Path, damage: str
) -> None:
    model = saved_model(CLASSIFIER, tmp_path, "model")
    logged = registry.files_digest(model.as_uri())
    whole = registered(model, registry, {FILES_DIGEST: logged}, (tmp_path / "artifacts").as_uri())
    registry.require_files_as_logged(whole)
    DAMAGES[damage](model / "model.py")
    with pytest.raises(
        DamagedVersion, match=f"the files of version 1 of .* changed .* expected SHA-256 {logged}. Rest"
    ):
        registry.require_files_as_logged(whole)


def test_loading_a_version_where_it_is_stored_does_not_change_it(registry: ModelRegistry, tmp_path: Path) -> None:
    model = saved_model(CLASSIFIER, tmp_path, "model")
    version = registered(model, registry, {}, (tmp_path / "artifacts").as_uri())
    program = f"import mlflow; mlflow.pyfunc.load_model({model.as_uri()!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    assert list(model.rglob("__pycache__/*.pyc")), "Python wrote bytecode beside the code"
    registry.require_files_as_logged(version)


def test_the_alias_decides_and_without_it_the_only_version_in_production() -> None:
    one, two = version(1, "Production"), version(2, "None", "production")
    assert serving_version([one, two]) == two
    assert "Alias production is on version 2, but stage Production has version 1." in (disagreement([one, two]) or "")
    assert serving_version([one]) == one
    assert "no version, but stage Production has version 1. Without the alias, the stage" in (disagreement([one]) or "")
    with pytest.raises(UnclearServingVersion, match="versions 1, 3 are all in stage Production"):
        serving_version([one, version(3, "Production")])
    assert disagreement([version(1, "Production", "production"), version(2, "None")]) is None


class Stageless(MlflowClient):
    """A registry in Unity Catalog, or on its open-source server: both have aliases and no stages."""

    error: Exception

    def transition_model_version_stage(self, *args: object, **options: object) -> NoReturn:
        """Never moves anything."""
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        mlflow.MlflowException(
            "Method 'transition_model_version_stage' is unsupported for models in the Unity Catalog."
        ),
        NotImplementedError("Method not implemented"),
    ],
)
def test_a_registry_without_stages_moves_aliases(three_versions: ModelRegistry, error: Exception) -> None:
    stageless = Stageless(three_versions.tracking_uri, three_versions.tracking_uri)
    stageless.error = error
    moves = StageMoves(stageless, three_versions.name, three_versions.versions)

    def aliases() -> list[tuple[str, ...]]:
        return [version.aliases for version in three_versions.versions()]

    moves.move(1, "Production", {})
    moves.move(2, "Staging", {})
    assert aliases() == [("production",), ("staging",), ()]
    moves.move(2, "Production", {"promotion": "why"})
    assert aliases() == [(), ("production",), ()]
    moves.mirror("Production", 3)
    assert aliases() == [(), (), ("production",)]
    moves.move(3, "Archived", {})
    assert aliases() == [(), (), ()]
    assert (stage_of(("staging", "production")), stage_of(("staging",)), stage_of(())) == (
        "Production",
        "Staging",
        "None",
    )


def test_a_version_is_refused_without_its_digest_with_other_files_or_as_a_pickle(
    registry: ModelRegistry, store_with_a_model: tuple[Path, str, str], tmp_path: Path
) -> None:
    _, code, mlflow_run_id = store_with_a_model
    pickle, created = saved_pickle(tmp_path, "pickle")

    def require(model_uri: str, digest: str | None) -> None:
        tags = {} if digest is None else {FILES_DIGEST: digest}
        registry.require_files_as_logged(registry.register(model_uri, mlflow_run_id, tags))

    require(code, registry.files_digest(code))
    with pytest.raises(DamagedVersion, match=r"has no tag files_digest.* promote_model for this one with `force: true"):
        require(code, None)
    with pytest.raises(DamagedVersion, match=r"changed after they were logged.* Restore the files"):
        require(code, "0" * 64)
    with pytest.raises(DamagedVersion, match=r"not stored as code.* Log the model from a Python file"):
        require(pickle.as_uri(), registry.files_digest(pickle.as_uri()))
    assert not created.exists()
