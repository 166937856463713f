"""What versions with an unchanged backbone say of stored embeddings, without loading the version."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from image_assets.models.image_embeddings import follow_featured_images
from image_assets.models.lineage import EMBEDDING_BACKBONE, THRESHOLDS
from image_assets.models.logged_models import CLASSIFIER_FILE, HEAD_FILE, TRAINING_EMBEDDINGS_FILE
from image_assets.models.novelty import TrainingEmbeddings
from image_assets.predictions.head_predictions import Head
from image_assets.predictions.image_predictions import score
from image_assets.schemas import IMAGE_PREDICTIONS
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import DamagedVersion, ModelRegistry, ModelVersion
from tests.support.embedded import BACKBONE, color_network, embed, feature
from tests.support.images import colored_jpeg
from tests.support.registered_versions import registered
from tests.support.tables import tables_at

LABELS = ["red", "blue"]
# Says `red` with certainty of every image that it is asked about.
CERTAIN = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Certain(PythonModel):
    def predict(self, context, model_input, params=None):
        rows = [("red", 1.0, [1.0, 0.0]) for _ in range(len(model_input))]
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


set_model(Certain())
"""


def version_with_head(
    registry: ModelRegistry, folder: Path, tags: dict[str, str], thresholds: list[float | None] | None = None
) -> ModelVersion:
    """A version whose head weighs red against blue."""
    code, head = folder / "certain.py", folder / HEAD_FILE
    code.write_text(CERTAIN)
    kernel = np.array([[0.02, -0.02], [0.0, 0.0], [-0.02, 0.02]])
    np.savez(head, kernel=kernel, bias=np.zeros(2), labels=np.array(LABELS))
    training = folder / TRAINING_EMBEDDINGS_FILE
    TrainingEmbeddings.of(np.eye(3)).save(training)
    classifier = folder / CLASSIFIER_FILE
    classifier.write_text(json.dumps({"thresholds": thresholds}))
    model = folder / "model"
    mlflow.pyfunc.save_model(
        model,
        python_model=str(code),
        artifacts={"head": str(head), "training": str(training), "classifier": str(classifier)},
        pip_requirements=["mlflow"],
    )
    return registered(model, registry, {"labels": json.dumps(LABELS), **tags}, (folder / "artifacts").as_uri())


def predicted(tables: DeltaTables) -> dict[str, dict[str, Any]]:
    """Predictions by path; no path may have several."""
    rows = tables.read(IMAGE_PREDICTIONS, IMAGE_PREDICTIONS.columns.fieldNames()).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def test_images_with_an_embedding_are_answered_by_the_head_and_others_by_the_network(
    tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    images = {f"file:/{number}": colored_jpeg(number % 2, number) for number in range(6)}
    feature(tables, images | {"file:/copy": images["file:/1"]})
    follow_featured_images(tables, color_network(tmp_path))
    feature(tables, {"file:/not embedded": colored_jpeg(1, 50)})
    version = version_with_head(registry, tmp_path, {EMBEDDING_BACKBONE: BACKBONE})
    assert score(tables, registry, version, "cpu") is None
    found = predicted(tables)
    assert len(found) == 8
    for number in range(6):
        row = found[f"file:/{number}"]
        assert row["label"] == LABELS[number % 2]
        assert 0.5 < row["probability"] < 1
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert (row["fault"], row["device"], row["model_version"]) == (None, "cpu", 1)
    assert found["file:/copy"]["probabilities"] == found["file:/1"]["probabilities"]
    assert (found["file:/not embedded"]["label"], found["file:/not embedded"]["probability"]) == ("red", 1.0)
    assert score(tables, registry, version, "cpu") is None
    assert len(predicted(tables)) == 8


@pytest.mark.parametrize("tags", [{}, {EMBEDDING_BACKBONE: "colors-numpy-other"}], ids=["no tag", "another backbone"])
def test_versions_of_another_backbone_use_their_network(
    tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, tags: dict[str, str]
) -> None:
    feature(tables, {"file:/1": colored_jpeg(1, 1)})
    follow_featured_images(tables, color_network(tmp_path))
    score(tables, registry, version_with_head(registry, tmp_path, tags), "cpu")
    assert predicted(tables)["file:/1"]["probability"] == 1


def test_a_head_that_was_changed_after_it_was_logged_is_not_used(
    tables: DeltaTables, registry: ModelRegistry, tmp_path: Path
) -> None:
    embed(tables, BACKBONE, {"a": [1.0, 2.0, 3.0]})
    feature(tables, {"file:/1": colored_jpeg(1, 1)})
    version = version_with_head(registry, tmp_path, {EMBEDDING_BACKBONE: BACKBONE})
    np.savez(tmp_path / "model" / "artifacts" / HEAD_FILE, kernel=np.ones((3, 2)), bias=np.ones(2), labels=LABELS)
    with pytest.raises(DamagedVersion):
        score(tables, registry, version, "cpu")
    assert predicted(tables) == {}


@pytest.mark.parametrize("edited", ["none", '{"by_label": [0.0]}', '{"by_label": [0.0, 0.0]}'])
def test_thresholds_are_those_of_the_files_whatever_somebody_wrote_into_the_tag(
    tables: DeltaTables, registry: ModelRegistry, tmp_path: Path, edited: str
) -> None:
    feature(tables, {f"file:/{number}": colored_jpeg(number, number) for number in range(2)})
    follow_featured_images(tables, color_network(tmp_path))
    tags = {EMBEDDING_BACKBONE: BACKBONE, THRESHOLDS: edited}
    score(tables, registry, version_with_head(registry, tmp_path, tags, [0.5, None]), "cpu")
    found = predicted(tables)
    assert [(found[path]["label"], found[path]["abstained"]) for path in sorted(found)] == [
        ("red", False),
        (None, True),
    ]


def test_probabilities_are_the_softmax_of_the_heads_outputs() -> None:
    rng = np.random.default_rng(0)
    kernel, bias, embeddings = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=(4, 5))
    training = TrainingEmbeddings.of(embeddings)
    found = Head("", ("a", "b", "c"), kernel, bias, [0.0] * 3, training).probabilities(embeddings)
    outputs = np.exp(embeddings @ kernel + bias)
    np.testing.assert_allclose(found, outputs / outputs.sum(axis=1, keepdims=True))
    large = Head("", ("a", "b"), np.array([[1e4, -1e4]]), np.zeros(2), [0.0] * 2, training)
    assert large.probabilities(np.array([[1.0]])).tolist() == [[1.0, 0.0]]


def test_a_head_abstains_below_the_thresholds_of_its_version() -> None:
    training = TrainingEmbeddings(np.array([[1, 0]], np.float16), threshold=0.5)
    head = Head("", ("a", "b"), np.eye(2), np.zeros(2), [0.9, 0.6], training)
    kept, abstained = head.answers(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert (kept["label"], kept["abstained"], kept["unlike_training"]) == ("b", False, True)
    assert (abstained["label"], abstained["abstained"], abstained["unlike_training"]) == (None, True, False)
    assert (abstained["most_probable_label"], kept["distance_from_training"]) == ("a", 1)
