"""Every version is evaluated once on the same images, and compared with the one that serves."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient
from pyspark.sql import functions as F

from image_assets.models.evaluation import Comparison, Slice, evaluate, mark_right
from image_assets.models.evaluation_report import Report, earlier_pictures
from image_assets.models.model_evaluations import (
    accuracies,
    answers_on_test_split,
    evaluate_new,
    first_shadow,
    first_to_serve,
    merge_evaluation,
    predict_test_split,
    promote_first,
    to_evaluate,
)
from image_assets.predictions.image_predictions import score
from image_assets.schemas import IMAGE_SPLITS, MODEL_EVALUATIONS
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking, create_store
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.registered_versions import registered, saved_model, saved_pickle, stages, with_three_versions
from tests.support.tables import tables_at, with_executor

LABELS = ["ball", "cube"]
CPU = InferenceDevice(choice="cpu")
# Knows what its name says: `path` reads the label off the path, the others always answer the same.
CLASSIFIER = """
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            knows = {knows!r}
            labels = [path.split("/")[-2] if knows == "path" else knows for path in model_input["path"]]
            probability = float("nan") if knows == "nothing" else 0.75
            columns = {{"label": labels, "probability": probability, "probabilities": [[0.25, 0.75]] * len(labels)}}
            return pd.DataFrame(columns, index=model_input.index)


    set_model(Classifier())
"""


@pytest.fixture
def tracking(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowTracking:
    """An MLflow store without runs, which takes MLflow seconds to make: tests share a copy."""
    empty = tmp_path_factory.getbasetemp() / "empty_store" / "mlflow.db"
    create_store(f"sqlite:///{empty}")
    shutil.copy(empty, tmp_path / "mlflow.db")
    artifacts = (tmp_path / "artifacts").as_uri()
    return MlflowTracking(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_url=artifacts)


@pytest.fixture
def registry(tracking: MlflowTracking) -> ModelRegistry:
    return ModelRegistry(tracking_uri=tracking.tracking_uri)


def version_that_knows(
    knows: str, framework: str, registry: ModelRegistry, folder: Path, artifacts: str
) -> ModelVersion:
    """A registered version with these predictions, whose run has ended."""
    model = saved_model(CLASSIFIER.format(knows=knows), folder, f"model_{knows}")
    return registered(model, registry, {"framework": framework, "labels": json.dumps(LABELS)}, artifacts)


def rows_of(tables: DeltaTables) -> dict[int, dict]:
    """The evaluations as another Delta reader finds them, by version."""
    rows = DeltaTable(tables.uri(MODEL_EVALUATIONS)).to_pyarrow_table().to_pylist()
    return {row["model_version"]: row for row in rows}


def version(number: int, framework: str = "torch", stage: str = "None") -> ModelVersion:
    return ModelVersion(number, stage, (), "", f"models:/image_classifier/{number}", {"framework": framework})


def test_the_newest_version_of_each_framework_and_the_serving_one_are_evaluated() -> None:
    versions = [
        version(1, stage="Production"),
        version(2),
        version(3),
        version(4, "tensorflow"),
        version(5, stage="Archived"),
    ]
    assert [one.version for one in to_evaluate(versions)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("accuracies", "serving", "promoted"),
    [({}, None, None), ({1: 0.5, 2: 0.75}, None, 2), ({1: 0.75, 2: 0.75}, None, 1), ({1: 0.5, 2: 0.75}, 1, None)],
)
def test_the_most_accurate_version_is_promoted_as_long_as_none_serves(
    accuracies: dict[int, float], serving: int | None, promoted: int | None
) -> None:
    assert first_to_serve(accuracies, serving=serving) == promoted


@pytest.mark.parametrize(
    ("accuracies", "staged", "shadow"),
    [
        ({2: 0.75}, [], None),
        ({1: 0.5, 2: 0.75, 3: 0.6}, [], 3),
        ({1: 0.5, 2: 0.75}, [2], 1),
        ({1: 0.5, 2: 0.75}, [7], None),
    ],
)
def test_the_next_most_accurate_version_is_its_shadow_unless_a_person_chose_one(
    accuracies: dict[int, float], staged: list[int], shadow: int | None
) -> None:
    assert first_shadow(accuracies, serving=2, staged=staged) == shadow


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed in between"])
def test_the_first_versions_are_promoted_together(tmp_path: Path, empty_store: Path, killed: bool) -> None:
    registry, accuracies = with_three_versions(tmp_path, empty_store), {1: 0.75, 2: 0.5, 3: 0.625}
    if killed:
        registry.promote(3, "Staging")
    serving = promote_first(accuracies, registry.versions(), registry)
    assert serving in registry.versions()
    assert stages(registry) == {1: "Production", 2: "None", 3: "Staging"}
    assert registry.serving() == serving
    again = promote_first({**accuracies, 2: 1.0}, registry.versions(), registry)
    assert again == serving, "a person has to promote a later, better version"
    assert stages(registry) == {1: "Production", 2: "None", 3: "Staging"}


def test_all_figures_are_kept_for_each_version_and_replaced_on_other_images(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    answers = pd.DataFrame({"true_label": LABELS, "label": ["ball", None], "probability": [0.75, None]})
    answers["probabilities"] = [[0.75, 0.25, 0], None]
    evaluation = evaluate(mark_right(answers), [*LABELS, "cone"])
    slices = [Slice("format", "PNG", 12, 0.25, 0.1, 0.5), Slice("folder", "file:/landing/ball", 10, 0.5, 0.2, 0.8)]
    first = Report(version(1), evaluation, slices, None, {})
    second = Report(version(2), evaluation, [], Comparison(1, 3, 0, 0.25), {})
    for report, rows_digest in ((first, "old"), (second, "new"), (first, "new")):
        merge_evaluation(tables, report, rows_digest)
    rows = rows_of(tables)
    assert set(rows) == {1, 2}
    assert list(rows[1]) == MODEL_EVALUATIONS.columns.fieldNames()
    assert {name for name, value in rows[1].items() if value is None} == {
        "compared_with",
        "only_this_right",
        "only_other_right",
        "p_value",
        "thresholds",
        "unlike_share",
        "unreadable",
        "with_unknown_label",
    }
    assert rows[1]["slices"][0] == {
        "by": "format",
        "value": "PNG",
        "images": 12,
        "accuracy": 0.25,
        "low": 0.1,
        "high": 0.5,
    }
    assert rows[1]["recall_low"][2] is None
    assert (rows[1]["support"], rows[1]["calibration_error"]) == ([1, 1, 0, 0], 0.25)
    assert rows[1]["log_loss"] == pytest.approx(-math.log(0.75))
    assert [rows[2][name] for name in ("slices", "compared_with", "only_this_right", "p_value")] == [[], 1, 3, 0.25]
    assert accuracies(tables, [version(1), version(2), version(3)], "new") == {1: 0.5, 2: 0.5}
    assert accuracies(tables, [version(1)], "old") == {}
    other_model = replace(version(1), name="another_classifier")
    other_registry = replace(version(1), mlflow_run_id="of another registry")
    for rows_there, other in ((3, other_model), (4, other_registry)):
        assert accuracies(tables, [other], "new") == {}
        merge_evaluation(tables, replace(first, version=other), "new")
        assert accuracies(tables, [other], "new") == {1: 0.5}
        assert tables.snapshot(MODEL_EVALUATIONS).rows == rows_there, "not the same version"


@pytest.mark.spark
def test_each_new_version_is_asked_recorded_compared_and_logged(
    ingested_tables: DeltaTables, registry: ModelRegistry, tracking: MlflowTracking, tmp_path: Path
) -> None:
    splits = ingested_tables.dataframe(IMAGE_SPLITS).withColumn("split", F.lit("test"))
    ingested_tables.overwrite(splits.localCheckpoint(), IMAGE_SPLITS)
    artifacts = (tmp_path / "artifacts").as_uri()
    ball = version_that_knows("ball", "tensorflow", registry, tmp_path, artifacts)
    path = version_that_knows("path", "torch", registry, tmp_path, artifacts)
    figures, metadata = evaluate_new(ingested_tables, registry, tracking, CPU)
    assert figures == {ball.version: 0.5, path.version: 1.0}
    pictures = ("confusion_matrix", "precision_and_recall", "reliability_diagram", "mistakes", "explanations")
    assert set(metadata) == {f"{name}_v{number}" for number in (1, 2) for name in (*pictures, "labels")} | {
        "comparison_v2"
    }
    rows = rows_of(ingested_tables)
    assert rows[1]["compared_with"] is None
    assert [rows[2][name] for name in ("compared_with", "only_this_right", "only_other_right")] == [1, 8, 0]
    assert rows[2]["p_value"] == 2 / 2**8
    assert rows[2]["calibration_error"] == 0.25
    log_loss = -(math.log(0.25) + math.log(0.75)) / 2
    assert rows[2]["log_loss"] == pytest.approx(log_loss)

    client = MlflowClient(tracking.tracking_uri)
    logged = client.get_run(path.mlflow_run_id)
    assert logged.data.metrics == {
        "test_accuracy": 1,
        "test_balanced_accuracy": 1,
        "test_calibration_error": 0.25,
        "test_log_loss": pytest.approx(log_loss),
    }
    assert logged.info.status == "FINISHED"
    files = {Path(file.path).name for file in client.list_artifacts(path.mlflow_run_id, "evaluation")}
    assert {Path(name).stem for name in files} == set(pictures)

    registry.promote(path.version, "Production")
    (tmp_path / "a file").touch()
    nothing = version_that_knows("nothing", "torch", registry, tmp_path, (tmp_path / "a file" / "in it").as_uri())
    figures, metadata = evaluate_new(ingested_tables, registry, tracking, CPU)
    assert figures == {ball.version: 0.5, path.version: 1.0, nothing.version: 0.0}
    assert "MLflow could not log the whole report" in str(metadata["not_logged_v3"].value)
    after = rows_of(ingested_tables)
    assert {number: after[number] for number in rows} == rows, "known versions are not evaluated again"
    assert [after[3][name] for name in ("compared_with", "only_this_right", "only_other_right")] == [2, 0, 16]
    assert after[3]["calibration_error"] is None
    earlier = earlier_pictures(path, tracking, {})
    assert set(earlier) == {f"{name}_v2" for name in pictures}
    assert earlier_pictures(path, tracking, earlier) == {}, "this run has made them"
    assert earlier_pictures(nothing, tracking, {}) == {}, "MLflow does not have them"
    assert after[3]["labels"] == [*LABELS, "(no answer)"]

    pickle, created = saved_pickle(tmp_path, "pickle")
    registered(pickle, registry, {"framework": "torch", "labels": json.dumps(LABELS)}, artifacts)
    figures, metadata = evaluate_new(ingested_tables, registry, tracking, CPU)
    assert 4 not in figures
    assert "version 4 of image_classifier is not stored as code" in str(metadata["not_evaluated_v4"].value)
    assert not created.exists()

    files = saved_model(CLASSIFIER.format(knows="ball"), tmp_path, "old")
    (files / "old.py").write_text("import a_package_of_an_earlier_release")
    old = registered(files, registry, {"framework": "torch", "labels": json.dumps(LABELS)}, artifacts)
    figures, metadata = evaluate_new(ingested_tables, registry, tracking, CPU)
    assert old.version not in figures
    assert "a_package_of_an_earlier_release" in str(metadata["not_evaluated_v5"].value)
    registry.promote(old.version, "Production")
    last = version_that_knows("cube", "torch", registry, tmp_path, artifacts)
    evaluate_new(ingested_tables, registry, tracking, CPU)
    assert rows_of(ingested_tables)[last.version]["compared_with"] == ball.version, "the serving one cannot be loaded"

    assert score(ingested_tables, registry, path, "cpu") is None
    gone = replace(path, uri=(tmp_path / "nowhere").as_uri())
    known = answers_on_test_split(gone, ingested_tables, registry, CPU)
    assert len(known) == 16, "what is predicted already is not predicted again"
    assert (known["label"] == known["true_label"]).all()

    unregistered = replace(path, version=0, uri=(tmp_path / "model_ball").as_uri())
    assert set(predict_test_split(unregistered, ingested_tables, registry, CPU)["label"]) == {"ball"}


@pytest.mark.spark
@pytest.mark.parametrize("knows", ["path", "nothing"])
def test_both_executors_evaluate_alike(
    ingested_tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, knows: str
) -> None:
    ingested_tables.update(
        [
            {"path": path, "image_id": image_id, "split": "test"}
            for path, image_id in ingested_tables.read_keys(IMAGE_SPLITS)
        ],
        IMAGE_SPLITS,
        ["split"],
    )
    version = version_that_knows(knows, "torch", registry, tmp_path, (tmp_path / "artifacts").as_uri())
    local, spark = (
        predict_test_split(version, with_executor(ingested_tables, executor), registry, CPU).sort_values("path")
        for executor in ("local", "spark")
    )
    assert len(local) == 16
    assert repr(plain_rows(local)) == repr(plain_rows(spark[[*local]]))


def plain_rows(answers: pd.DataFrame) -> list[dict]:
    """The rows with lists where Spark gives arrays, and None where pandas may have NaN."""
    rows = answers.assign(probabilities=[None if of is None else [*of] for of in answers["probabilities"]])
    return rows.astype(object).where(rows.notna(), None).to_dict("records")
