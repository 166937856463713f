"""Tests of the training in PyTorch, with real Horovod processes."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from image_assets.models.torch_training import train
from image_assets.models.trained import Trained
from resources.horovod_runner import HorovodFailure

pytestmark = pytest.mark.training
Training = Callable[..., tuple[list[Trained], str, str]]


def test_two_ranks_train_one_model_and_leave_the_mlflow_run_open(trained_on_two_ranks: Training) -> None:
    ranks, tracking_uri, mlflow_run_id = trained_on_two_ranks(train)

    assert [(of.rank, of.size, of.backbone) for of in ranks] == [(0, 2, "untrained"), (1, 2, "untrained")]
    assert ranks[0].weights_digest == ranks[1].weights_digest
    assert ranks[0].steps == ranks[1].steps
    assert ranks[0].history == ranks[1].history
    losses = [epoch["loss"] for epoch in ranks[0].history]
    assert losses[1] < losses[0]
    assert ranks[0].model_uri
    assert ranks[1].model_uri is None
    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(mlflow_run_id)
    assert run.info.status == "RUNNING"
    model = client.get_logged_model(ranks[0].model_uri.removeprefix("models:/"))
    assert (model.experiment_id, model.source_run_id) == (run.info.experiment_id, mlflow_run_id)
    assert model.status == "READY"
    logged = client.get_metric_history(mlflow_run_id, "validation_accuracy")
    assert [(metric.step, metric.value) for metric in logged] == [
        (int(epoch["epoch"]), epoch["validation_accuracy"]) for epoch in ranks[0].history
    ]


def test_a_backbone_folder_without_weights_is_named_with_what_it_holds(
    trained_on_two_ranks: Training, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "other.bin").touch()

    with pytest.raises(
        HorovodFailure, match=r"\AFileNotFoundError: .*weights holds other\.bin: expected .*mobilenet_v2_features"
    ):
        trained_on_two_ranks(train, backbone=str(folder))
