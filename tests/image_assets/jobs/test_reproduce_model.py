"""Errors of a model version that cannot be trained again; `tests/path` tests that reproductions are identical."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from image_assets.jobs.reproduce_model import RecordedTraining, reproduce, scratch_locations, tables_at_training
from image_assets.models.training import TrainingResources
from image_assets.models.training_config import TrainingConfig
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.petastorm_caches import PetastormCaches
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import DamagedVersion, ModelRegistry, ModelVersion
from resources.training import BackboneWeights, TrainingProcesses
from tests.support.registered_versions import registered, saved_model
from tests.support.tables import tables_at

INPUTS = (FEATURED_IMAGES, IMAGE_FILES, IMAGE_SPLITS)
TAGS = {
    "framework": "torch",
    "training_settings": TrainingConfig(seed=7).model_dump_json(),
    "cache_settings": json.dumps({"content": "pixels", "color": "gray"}),
    "processes": "1",
    "backbone_identity": "none",
    "table_versions": json.dumps({"image_splits": 3}),
}
VERSION = ModelVersion(1, "None", (), "run", "models:/image_classifier/1", TAGS)


def test_settings_are_read_from_the_tags() -> None:
    recorded = RecordedTraining.of(VERSION)
    assert (recorded.framework, recorded.processes, recorded.config.seed) == ("torch", 1, 7)
    assert recorded.cache_settings == {"content": "pixels", "color": "gray"}


def test_missing_tags_are_named() -> None:
    other = replace(VERSION, tags={"framework": "torch", "processes": "1"})
    with pytest.raises(ValueError, match=r"image_classifier/1 cannot be trained again: it lacks the tags training_set"):
        RecordedTraining.of(other)


@pytest.mark.parametrize(
    ("edited", "why"),
    [
        ({"training_settings": '{"epochs": -1}'}, "epochs"),
        ({"training_settings": "the usual ones"}, "Expecting value"),
        ({"training_settings": "[1]"}, "list"),
        ({"cache_settings": "[1]"}, "sequence"),
        ({"processes": "two"}, "two"),
    ],
)
def test_invalid_settings_name_the_commit_to_check_out(edited: dict[str, str], why: str) -> None:
    other = replace(VERSION, tags={**TAGS, **edited, "code_version": "abc123"})
    with pytest.raises(ValueError, match=rf"(?s)cannot be trained .* is invalid: .*{why}.* check out abc123"):
        RecordedTraining.of(other)


def test_checkpoints_are_beside_the_caches_wherever_the_tables_are_and_are_deleted(tmp_path: Path) -> None:
    resources = TrainingResources(
        tables_at("s3://bucket/tables").as_of({}),
        PetastormCaches(root=str(tmp_path)),
        TrainingProcesses(processes=1),
        BackboneWeights(source="none"),
        MlflowTracking(tracking_uri="sqlite:///mlflow.db"),
        ModelRegistry(tracking_uri="sqlite:///mlflow.db"),
    )
    with scratch_locations(resources, "run") as locations:
        Path(locations.checkpoints).mkdir(parents=True)
        assert Path(locations.checkpoints).is_relative_to(tmp_path)
    assert not Path(locations.checkpoints).exists()


def test_changed_files_are_never_loaded(registry: ModelRegistry, tmp_path: Path) -> None:
    model = saved_model(
        "from mlflow.models import set_model\nset_model(lambda model_input: model_input)", tmp_path, "changed"
    )
    version = registered(model, registry, TAGS, (tmp_path / "artifacts").as_uri())
    (model / "changed.py").write_text("raise SystemExit('loaded')")
    resources = TrainingResources(
        tables_at(tmp_path),
        PetastormCaches(root=str(tmp_path)),
        TrainingProcesses(processes=1),
        BackboneWeights(source="none"),
        MlflowTracking(tracking_uri=registry.tracking_uri),
        registry,
    )
    with pytest.raises(DamagedVersion, match="the files of version 1 of image_classifier changed"):
        reproduce(version, resources, InferenceDevice(choice="cpu"), "a run")


@pytest.mark.spark
def test_lost_tables_are_named_before_training(ingested_tables: DeltaTables) -> None:
    at = {table.name: ingested_tables.version(table) for table in INPUTS}
    version = replace(VERSION, tags={**TAGS, "table_versions": json.dumps(at)})
    for table in INPUTS:
        rows = ingested_tables.read(table, table.columns.fieldNames())
        write_deltalake(ingested_tables.uri(table), rows.slice(0, 3), mode="overwrite")
    assert tables_at_training(version, ingested_tables).read(IMAGE_SPLITS, ["path"]).num_rows == 16
    DeltaTable(ingested_tables.uri(IMAGE_SPLITS)).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(ValueError, match=r"image_classifier/1 cannot be trained again: image_splits "):
        tables_at_training(version, ingested_tables)
