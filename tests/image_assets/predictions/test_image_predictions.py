"""What a version says of each image, also where it fails on one of them."""

import json
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from image_assets.predictions.image_predictions import answers_metadata, fault_metadata, image_predictions, score
from image_assets.predictions.prediction_checks import probabilities_sum_to_one
from image_assets.predictions.version_agreements import version_agreements
from image_assets.schemas import IMAGE_PREDICTIONS, VERSION_AGREEMENTS
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import ExecutorName
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.registered_versions import registered, saved_model
from tests.support.tables import with_executor

pytestmark = pytest.mark.spark

FIGURES = [name for name in VERSION_AGREEMENTS.columns.fieldNames()[:10] if not name.endswith("_id")]
# Fails on the images that its faults name, by path: the way is the value.
CLASSIFIER = """
    import os
    import signal

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel

    FAULTS = {faults!r}


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            ways = [FAULTS.get(path.split("/")[-1]) for path in model_input["path"]]
            if "kills" in ways:
                os.kill(os.getpid(), signal.SIGKILL)
            if "raises" in ways:
                raise RuntimeError("what is this?")
            rows = [("ball", 0.75, [0.75, 0.25]) for _ in ways]
            for number, way in enumerate(ways):
                if way == "nan":
                    rows[number] = "ball", float("nan"), [float("nan")] * 2
                if way == "long":
                    rows[number] = "ball", 0.5, [0.5, 0.25, 0.25]
                if way == "cube":
                    rows[number] = "cube", 0.75, [0.25, 0.75]
                if way == "unread":
                    rows[number] = None, None, None
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Classifier())
"""


ABSTAINING_COLUMNS = ["label", "probability", "probabilities", "abstained", "most_probable_label"]
# Answers for balls, abstains for cubes, and cannot read one image.
ABSTAINING = """
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            answers = {"ball": ("ball", 0.75, [0.75, 0.25], False, "ball")}
            answers["cube"] = (None, 0.625, [0.375, 0.625], True, "cube")
            names = [path.split("/")[-1] for path in model_input["path"]]
            rows = [(None,) * 5 if name == "ball 0.png" else answers[name.split()[0]] for name in names]
            columns = ["label", "probability", "probabilities", "abstained", "most_probable_label"]
            return pd.DataFrame(rows, columns=columns, index=model_input.index, dtype=object)


    set_model(Classifier())
"""


def version_with(registry: ModelRegistry, folder: Path, faults: dict[str, str]) -> ModelVersion:
    """A version that fails on some images."""
    model = saved_model(CLASSIFIER.format(faults=faults), folder, f"version{len(registry.versions())}")
    tags = {"framework": "torch", "labels": json.dumps(["ball", "cube"])}
    return registered(model, registry, tags, (folder / "artifacts").as_uri())


def predictions(tables: DeltaTables, version: ModelVersion) -> dict[str, tuple]:
    """File name: label and fault, in one word."""
    rows = tables.read(IMAGE_PREDICTIONS, ["path", "label", "fault", "model_version", "probabilities"]).to_pylist()
    return {
        row["path"].split("/")[-1]: (row["label"], row["fault"] and row["fault"].split(":")[0])
        for row in rows
        if row["model_version"] == version.version
    }


@pytest.fixture(params=["local", "spark"])
def executor(request: pytest.FixtureRequest) -> ExecutorName:
    return request.param


@pytest.fixture
def ingested_tables(ingested_tables: DeltaTables, executor: ExecutorName) -> DeltaTables:
    """The tables of sixteen images, predicted by an executor."""
    return with_executor(ingested_tables, executor)


def test_answers_that_are_none_are_nulls_with_a_fault(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    ways = {"ball 0.png": "nan", "cube 1.png": "long", "ball 2.png": "unread"}
    version = version_with(registry, tmp_path, ways)
    assert score(ingested_tables, registry, version, "cpu") is None
    found = predictions(ingested_tables, version)
    assert len(found) == 16
    assert {name: found.pop(name) for name in ways} == {
        "ball 0.png": (None, "no_distribution"),
        "cube 1.png": (None, "no_distribution"),
        "ball 2.png": (None, "unreadable"),
    }
    assert set(found.values()) == {("ball", None)}
    assert fault_metadata(ingested_tables, [version])["faults"].value == 3, "the unread file is there"


def test_a_version_that_abstains_leaves_the_label_null_and_says_what_is_most_probable(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    model = saved_model(ABSTAINING, tmp_path, "abstaining", columns=ABSTAINING_COLUMNS)
    tags = {"framework": "torch", "labels": json.dumps(["ball", "cube"])}
    version = registered(model, registry, tags, (tmp_path / "artifacts").as_uri())
    assert score(ingested_tables, registry, version, "cpu") is None
    rows = ingested_tables.read(IMAGE_PREDICTIONS, ["path", *ABSTAINING_COLUMNS, "fault"]).to_pylist()
    found = {row.pop("path").split("/")[-1]: tuple(row.values()) for row in rows}
    assert found.pop("ball 0.png") == (None, None, None, None, None, "unreadable: the version could not read the image")
    assert {name.split()[0]: row for name, row in found.items()} == {
        "ball": ("ball", 0.75, [0.75, 0.25], False, "ball", None),
        "cube": (None, 0.625, [0.375, 0.625], True, "cube", None),
    }
    assert fault_metadata(ingested_tables, [version])["faults"].value == 1
    assert "answers" in answers_metadata(ingested_tables, version)
    assert probabilities_sum_to_one(ingested_tables).passed  # pyright: ignore[reportAttributeAccessIssue] - a check


@pytest.mark.slow
def test_an_image_that_breaks_the_model_costs_its_own_answer_and_the_next_version_is_asked_again(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, executor: str
) -> None:
    ways = {"ball 0.png": "raises", "cube 1.png": "kills", "cube 3.png": "nan", "ball 4.png": "unread"}
    version = version_with(registry, tmp_path, ways)
    failed = score(ingested_tables, registry, version, "cpu")
    assert (failed is None) == (executor == "local")
    found = predictions(ingested_tables, version)
    assert len(found) == 16
    assert {name: found.pop(name) for name in ways} == {
        "ball 0.png": (None, "raised"),
        "cube 1.png": (None, "model_crash"),
        "cube 3.png": (None, "no_distribution"),
        "ball 4.png": (None, "unreadable"),
    }
    assert set(found.values()) == {("ball", None)}
    listed = str(fault_metadata(ingested_tables, [version])["images_with_faults"].value)
    assert "raised: RuntimeError: what is this?" in listed
    assert "SIGKILL" in listed

    assert score(ingested_tables, registry, version, "cpu") is None
    assert ingested_tables.snapshot(IMAGE_PREDICTIONS).rows == 16
    better = version_with(registry, tmp_path, {})
    score(ingested_tables, registry, better, "cpu")
    assert set(predictions(ingested_tables, better).values()) == {("ball", None)}


def test_only_what_failed_in_spark_is_scored_again(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, executor: str
) -> None:
    version = version_with(registry, tmp_path, {})
    outages = [OSError("the connection broke")]

    class Unreliable(ModelRegistry):
        """A registry whose first answer is lost."""

        def require_files_as_logged(self, version: ModelVersion) -> None:
            """Fails once."""
            if outages:
                raise outages.pop()
            super().require_files_as_logged(version)

    unreliable = Unreliable(tracking_uri=registry.tracking_uri)
    if executor == "local":  # the run fails, and its retry policy applies
        with pytest.raises(OSError, match="the connection broke"):
            score(ingested_tables, unreliable, version, "cpu")
        assert predictions(ingested_tables, version) == {}
    else:
        assert str(score(ingested_tables, unreliable, version, "cpu")) == "the connection broke"
        assert len(predictions(ingested_tables, version)) == 16


def test_versions_in_staging_predict_beside_the_serving_one_and_are_compared_with_it(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    serving = version_with(registry, tmp_path, {})
    shadow = version_with(registry, tmp_path, {"ball 0.png": "unread", "cube 1.png": "cube"})
    broken = registry.register((tmp_path / "nowhere").as_uri(), serving.mlflow_run_id, dict(serving.tags))
    registry.promote(serving.version, "Production")
    for version in (shadow, broken):
        with pytest.warns(FutureWarning):
            MlflowClient(registry.tracking_uri).transition_model_version_stage(
                registry.name, str(version.version), "Staging"
            )
    made = dg.materialize(
        [image_predictions, version_agreements],
        instance=dg.DagsterInstance.ephemeral(),
        resources={
            "delta_tables": ingested_tables,
            "model_registry": registry,
            "inference_device": InferenceDevice(choice="cpu"),
            "image_folder": ImageFolder(root=str(tmp_path)),
        },
    )
    (materialization,) = made.asset_materializations_for_node("image_predictions")
    assert (materialization.metadata["serving_version"].value, materialization.metadata["shadow_versions"].value) == (
        "1",
        "2, 3",
    )
    assert "shadow_v3_failed" in materialization.metadata
    rows = {row["model_version"]: row for row in ingested_tables.read(VERSION_AGREEMENTS, FIGURES).to_pylist()}
    assert rows[2] == {
        "model_name": registry.name,
        "model_version": 2,
        "compared_with": 1,
        "images": 16,
        "agreeing": 14,
        "agreement": 14 / 16,
        "only_this_answered": 0,
        "only_other_answered": 1,
    }
    assert rows[3]["images"] == 0
    (compared,) = made.asset_materializations_for_node("version_agreements")
    assert "disagreements_v2" in compared.metadata


def test_a_shadow_whose_framework_finds_no_gpu_stops_nobody(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    version = version_with(registry, tmp_path, {})
    shadow = registry.register(version.uri, version.mlflow_run_id, {**version.tags, "framework": "another"})
    registry.promote(shadow.version, "Staging")
    made = dg.materialize(
        [image_predictions],
        resources={
            "delta_tables": ingested_tables,
            "model_registry": registry,
            "inference_device": InferenceDevice(choice="cuda"),
        },
    )
    (materialization,) = made.asset_materializations_for_node("image_predictions")
    assert "another finds no GPU" in str(materialization.metadata["shadow_v2_failed"].value)
