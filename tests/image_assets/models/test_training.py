"""What a training reports of all its processes together."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from image_assets.images.charts import learning_curves
from image_assets.models.backbones import MOBILENET_V2
from image_assets.models.calibration import Thresholds
from image_assets.models.frameworks import TORCH
from image_assets.models.lineage import MAX_LABELS_TAG_LENGTH, labels_tag, log_outcome
from image_assets.models.training import FINGERPRINT, LoggedTraining, Task, combined, to_metadata, trained_before
from image_assets.models.training_config import TrainingConfig
from image_assets.models.training_plan import TrainingResult
from resources.delta.petastorm_caches import Cache, PetastormCaches
from resources.mlflow.model_registry import ModelRegistry

HISTORY = ({"epoch": 1.0, "loss": 0.5, "accuracy": 0.75, "validation_loss": 0.6, "validation_accuracy": 0.7},)
FIRST = TrainingResult(
    rank=0,
    size=2,
    model_uri="models:/m-1",
    backbone="imagenet",
    history=HISTORY,
    best_epoch=1,
    steps=3,
    images_per_second=40.0,
    embedded_images=7,
    seconds=9.0,
    seconds_to_first_step=2.0,
    precision="float32",
    weights_digest="0" * 64,
    network=b"onnx",
)


def test_images_that_the_ranks_embedded_are_added_up_once() -> None:
    second = replace(FIRST, rank=1, model_uri=None, network=None, embedded_images=4, images_per_second=25.5)
    trained = combined([FIRST, second])
    assert (trained.embedded_images, trained.images_per_second) == (11, 65.5), "as MLflow logs them"
    assert (trained.rank, trained.network) == (0, b"onnx")
    assert trained.abstention == {}
    shown = to_metadata(LoggedTraining(trained, learning_curves(HISTORY), "models:/m-2"))
    assert (shown["embedded_images"], shown["embedded_images_per_second"]) == (11, 65.5)


def test_a_run_in_mlflow_has_the_figures_of_the_version_and_not_only_those_of_its_epochs(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    tuned = ({**HISTORY[0], "validation_accuracy": 0.9}, {**HISTORY[0], "epoch": 2.0, "validation_accuracy": 0.8})
    trained = replace(FIRST, history=HISTORY + tuned, best_epoch=2, thresholds=Thresholds([0.5, None], 0.6, 0.95))
    mlflow.set_tracking_uri(registry.tracking_uri)
    with mlflow.start_run(experiment_id=mlflow.create_experiment("of this test", tmp_path.as_uri())) as run:
        log_outcome(trained, learning_curves(trained.history))
    logged = MlflowClient(registry.tracking_uri).get_run(run.info.run_id).data.metrics
    names = ("best_validation_accuracy", "validation_coverage", "validation_precision")
    assert [logged[name] for name in names] == [0.9, 0.6, 0.95]


def test_the_names_of_labels_are_stored_in_any_script_or_refused_before_the_training(registry: ModelRegistry) -> None:
    label = "\N{CJK UNIFIED IDEOGRAPH-82B1}" * (MAX_LABELS_TAG_LENGTH - len('[""]'))
    tags = {"labels": labels_tag([label])}
    MlflowClient(registry.tracking_uri).create_model_version(registry.name, "file:///nowhere", tags=tags)
    assert registry.version(1).labels == [label]
    with pytest.raises(ValueError, match=r"the names of the 1 labels need 100,001 characters.* shorten them"):
        labels_tag([f"{label}."])


@pytest.mark.parametrize(("source", "backbone"), [("auto", "untrained"), ("auto", "imagenet"), ("none", "untrained")])
def test_a_version_is_trained_again_if_its_files_are_lost_or_weights_that_it_had_to_do_without_are_there(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, backbone: str
) -> None:
    cache = Cache("training-v1-0", "file:///caches", 3, (), "original", "rgb")
    plan = TrainingConfig(backbone=MOBILENET_V2.name).plan(2, source, PetastormCaches(root="/caches"))
    task = Task(TORCH.name, ["a", "b"], cache, replace(cache, name="validation-v1-0"), plan, source, 1)
    assert trained_before(task, registry) is None
    tags, files = {FINGERPRINT: task.fingerprint, "backbone": backbone}, tmp_path / "files"
    MlflowClient(registry.tracking_uri).create_model_version(registry.name, files.as_uri(), tags=tags)
    assert trained_before(task, registry) is None, "its files are lost"
    files.mkdir()
    (files / "MLmodel").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert trained_before(task, registry) == registry.version(1), "there are still no weights"
    TORCH.downloads().mkdir(parents=True)
    (TORCH.downloads() / MOBILENET_V2.implementations[TORCH.name].weight_files[-1]).touch()
    again = (source, backbone) == ("auto", "untrained")
    assert trained_before(task, registry) == (None if again else registry.version(1))
