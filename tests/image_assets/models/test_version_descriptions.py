"""What people read about a version in MLflow."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.models.version_descriptions import WRITTEN, describe_versions, description
from image_assets.models.version_ids import key_of
from image_assets.schemas import MODEL_EVALUATIONS
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.tables import tables_at

TAGS = {
    "framework": "torch",
    "labels": json.dumps(["ball", "cube"]),
    "training_images": "1799",
    "refit_images": "2185",
    "table_versions": json.dumps({"image_splits": 12, "raw_images": 3}),
    "backbone_name": "a_backbone",
    "backbone": "imagenet",
    "files_digest": "0" * 64,
}
GALLERY = "http://127.0.0.1:4000"
METRICS = {"split": "test", "images": 547, "accuracy": 0.9, "accuracy_low": None, "accuracy_high": None}
METRICS |= {"calibration_error": None, "coverage": None, "answered_accuracy": None}


def with_tags(tags: dict[str, str]) -> ModelVersion:
    return ModelVersion(1, "None", (), "run", "models:/image_classifier/1", tags)


def test_a_version_is_described_by_its_metrics_labels_and_data_unless_a_person_did(
    tmp_path: Path, empty_store: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    registry, tables = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"), tables_at(tmp_path / "tables")
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    for text in (None, "Ada's own words", None):
        client.create_model_version(registry.name, "file:///nowhere", tags=TAGS, description=text)
    described, own, not_evaluated = registry.versions()
    measured = {"split": "test", "images": 547, "accuracy": 0.9, "accuracy_low": 0.872, "accuracy_high": 0.923}
    rows = [{**key_of(one), **measured, "evaluated_at": datetime.now(UTC)} for one in (described, own)]
    columns = pa.Table.from_pylist(rows, to_arrow_schema(MODEL_EVALUATIONS.columns))
    tables.merge(columns, MODEL_EVALUATIONS, updates={})

    describe_versions(registry.versions(), tables, registry, GALLERY)

    found = [version.description for version in registry.versions()]
    assert found[1:] == ["Ada's own words", ""]
    paragraphs = found[0].split("\n\n")
    assert paragraphs[:4] == [
        "**90.0%** of the 547 images of the test split are classified correctly (95 % interval: 87.2% to 92.3%).",
        "2 labels: ball, cube.",
        "Trained in PyTorch on 2,185 images of image_splits at Delta version 12 from a_backbone with imagenet weights.",
        f"[Its mistakes]({GALLERY}/?version=1&answer=mistakes&sort=sure) and "
        f"[all its predictions]({GALLERY}/?version=1) in the gallery.",
    ]
    before = client.get_model_version(registry.name, "1").last_updated_timestamp
    describe_versions(registry.versions(), tables, registry, GALLERY)
    assert client.get_model_version(registry.name, "1").last_updated_timestamp == before
    describe_versions(registry.versions(), tables, registry, "https://gallery")
    assert "https://gallery/?version=1" in registry.version(1).description
    assert not_evaluated.description == ""


@pytest.mark.parametrize(
    ("edited", "origin"),
    [
        ({"table_versions": "version 12"}, "on 2,185 images from a_backbone"),
        ({"table_versions": "[12]"}, "on 2,185 images from a_backbone"),
        ({"refit_images": "about 2,000"}, "of image_splits at Delta version 12 from a_backbone"),
    ],
)
def test_tags_that_somebody_edited_are_left_out(edited: dict[str, str], origin: str) -> None:
    found = description(with_tags(TAGS | edited), METRICS, GALLERY)
    assert f"Trained in PyTorch {origin} with imagenet weights." in found


def test_the_description_says_where_other_weights_come_from() -> None:
    assert "from a_backbone with weights from a folder." in description(
        with_tags(TAGS | {"backbone": "folder"}), METRICS, GALLERY
    )


def test_the_description_fits_into_mlflow_however_long_the_labels_are() -> None:
    labels = [f"{number} {'long' * 35}" for number in range(50)]
    found = description(with_tags(TAGS | {"labels": json.dumps(labels)}), METRICS, GALLERY)
    assert len(found) < 5000
    assert f"50 labels: {labels[0]}, {labels[1]}, " in found
    assert WRITTEN in found
