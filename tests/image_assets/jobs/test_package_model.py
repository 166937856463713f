"""package_model pins its requirements, and never overwrites a folder or loads changed files."""

import json
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import mlflow
import pandas as pd
import pytest

from image_assets.jobs.package_model import EDGE_FILE, package_model, to_requirements, write_package
from image_assets.models.training import FILES_DIGEST
from resources.mlflow.model_packages import ModelPackages
from resources.mlflow.model_registry import ModelRegistry
from tests.image_assets.jobs.test_edge_model import network, to_classifier
from tests.support.registered_versions import registered, saved_model

MODEL = """
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Model(PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input


    set_model(Model())
"""


def packaged(registry: ModelRegistry, root: Path, **config: object) -> str:
    """The error of a run that fails."""
    result = package_model.execute_in_process(
        run_config={"ops": {"package": {"config": config}}},
        resources={"model_registry": registry, "model_packages": ModelPackages(root=str(root))},
        raise_on_error=False,
    )
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(failure.step_failure_data.error)


def test_changed_files_and_existing_folders_are_errors(registry: ModelRegistry, tmp_path: Path) -> None:
    model = saved_model(MODEL, tmp_path, "model")
    tags = {"framework": "torch", "labels": "[]", FILES_DIGEST: registry.files_digest(model.as_uri())}
    registered(model, registry, tags, (tmp_path / "artifacts").as_uri())
    (model / "model.py").write_text("raise SystemExit('loaded')")
    packages = tmp_path / "packages"

    assert "Version 1 was not packaged: " in packaged(registry, packages, version=1)
    assert list(packages.iterdir()) == []
    assert "no version 2; existing versions: 1" in packaged(registry, packages, version=2)
    existing = packages / "image_classifier_v1"
    existing.mkdir()
    assert f"{existing} already exists, so nothing was written" in packaged(registry, packages, version=1)
    assert list(existing.iterdir()) == []
    elsewhere = str(tmp_path / "model")
    assert f"{elsewhere} already exists" in packaged(registry, packages, version=1, folder=elsewhere)
    for url in ("s3://bucket/model", "s3:/bucket", "file:///srv/model"):
        assert f"{url!r} is a URL: expected a folder" in packaged(registry, packages, version=1, folder=url)


def test_a_version_that_was_not_trained_here_is_not_packaged(registry: ModelRegistry, tmp_path: Path) -> None:
    registered(saved_model(MODEL, tmp_path, "model"), registry, {}, (tmp_path / "artifacts").as_uri())
    error = packaged(registry, tmp_path / "packages", version=1)
    assert "The version has the artifacts none: expected onnx and classifier" in error


def test_a_version_without_tags_is_packaged_as_its_files_say(registry: ModelRegistry, tmp_path: Path) -> None:
    classifier = tmp_path / "classifier.json"
    classifier.write_text(json.dumps(to_classifier("rgb")))
    code = tmp_path / "model.py"
    code.write_text(dedent(MODEL))
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(code),
        artifacts={"onnx": str(network(tmp_path)), "classifier": str(classifier)},
        pip_requirements=["mlflow", "pillow"],
        input_example=pd.DataFrame({"content": [b""], "path": [None]}),
    )
    version = registered(tmp_path / "model", registry, {}, (tmp_path / "artifacts").as_uri())
    folder = tmp_path / "package"
    folder.mkdir()
    write_package(version, registry, folder)
    assert "trained in torch" in (folder / "README.md").read_text()
    assert (folder / EDGE_FILE).is_file()


@pytest.mark.parametrize("framework", ["tensorflow", "torch"])
def test_all_requirements_are_pinned_without_the_platform_and_training_frameworks(
    framework: str, tmp_path: Path
) -> None:
    names = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "simplejpeg", framework)
    lines = [f"{name}=={metadata.version(name)}" for name in names]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    found = to_requirements(tmp_path)
    assert all("==" in line for line in found)
    pinned = {f"{name}=={metadata.version(name)}" for name in (*names[1:-1], "mlflow-skinny")}
    assert pinned <= set(found)
    found_names = {line.split("==")[0] for line in found}
    assert {"protobuf", "uvicorn"} <= found_names
    unwanted = ("dagster", "pyspark", "delta", "petastorm", "horovod", "nvidia", "sqlalchemy", "mlflow=", framework)
    assert not [name for name in found_names if name.startswith(unwanted)]


def test_other_versions_of_direct_requirements_are_kept_without_further_pins(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("mlflow==3.1.0\nnumpy==1.26.0\ntensorflow==2.19.0\n")
    assert to_requirements(tmp_path) == ["mlflow-skinny==3.1.0", "numpy==1.26.0"]
