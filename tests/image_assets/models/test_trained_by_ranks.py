"""Trainings on two ranks, in each framework and by each distributor, on real photographs where there are some."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest

from image_assets.models.backbones import MOBILENET_V2
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import TrainedClassifier, log_classifier
from image_assets.models.training_plan import TrainingResult
from resources.delta.spark_session import DeltaSpark
from resources.mlflow.model_registry import ModelRegistry
from resources.processes.rank_process import Distributor
from resources.processes.ranks import RankFailure
from resources.training import TrainingProcesses
from tests.image_assets.conftest import HEAD, PLAN, Work
from tests.support.photographs import PHOTOGRAPHS, WEIGHTS, photographs
from tests.support.rank_programs import train_and_average

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]
LABELS = ("daisy", "tulips")
WAYS = pytest.mark.parametrize(
    ("framework", "distributor", "changes"),
    [
        ("torch", "this machine", {"trainable": "top_blocks", "augmentation": True}),
        ("tensorflow", "horovod", {"trainable": "top_blocks", "head_fit": "closed_form"}),
        ("torch", "torch_distributor", {"head_fit": "closed_form"}),
        ("tensorflow", "tensorflow_distributor", {}),
    ],
)
TWO = TrainingProcesses(processes=2)


@pytest.fixture
def flowers(to_work: Callable[..., Work]) -> Work:
    """Photographs of two labels; the ranks' shards differ in size."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs in {PHOTOGRAPHS}")
    images = [(file.read_bytes(), index) for index, label in enumerate(LABELS) for file in photographs(label)[:20]]
    work = to_work(images[::2] + images[1::6], images[3::4])
    backbone = str(WEIGHTS) if WEIGHTS.is_dir() else "none"
    return replace(work, plan=replace(PLAN, backbone=backbone, head=replace(HEAD, epochs=4)))


@WAYS
def test_two_ranks_train_one_model_that_answers_bytes(
    delta_spark: DeltaSpark,
    flowers: Work,
    framework: str,
    distributor: Distributor | Literal["this machine"],
    changes: dict[str, Any],
) -> None:
    library: Distributor = "horovod" if distributor == "this machine" else distributor
    arguments = framework, *flowers.arguments(distributor=library, **changes)
    if distributor == "this machine":
        with TWO.started(delta_spark, "horovod", FRAMEWORKS[framework].rank_imports) as run:
            answers = run(train_and_average, *arguments)
    else:
        answers = TWO.run(delta_spark, distributor, train_and_average, *arguments)
    ranks, differences = zip(*answers, strict=True)
    first, second = ranks
    assert [(of.rank, of.size) for of in ranks] == [(0, 2), (1, 2)]
    assert first.weights_digest == second.weights_digest
    assert first.steps == second.steps
    assert without_seconds(first) == without_seconds(second)
    assert first.history[-1]["loss"] < np.log(len(LABELS))  # that of equal probabilities
    assert max(differences) < 1e-5, "two ranks with half a batch each change weights as one with all of it"
    assert second.model_uri is None
    assert_logged(flowers, first)
    if library == "horovod":  # what connects the ranks changes nothing in the model that rank 0 logs
        answers = registered_answers(flowers, framework, first)
        assert (answers["label"] == [LABELS[0], LABELS[1]]).all()
        assert np.allclose([sum(each) for each in answers["probabilities"]], 1, atol=1e-5)


def without_seconds(trained: TrainingResult) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in trained.history]


def assert_logged(work: Work, trained: TrainingResult) -> None:
    """The run is open, and holds every epoch's figures and the model."""
    client = mlflow.MlflowClient(work.places.tracking_uri)
    run = client.get_run(work.places.mlflow_run_id)
    assert run.info.status == "RUNNING"
    model = client.get_logged_model(str(trained.model_uri).removeprefix("models:/"))
    assert (model.source_run_id, model.status) == (run.info.run_id, "READY")
    logged = client.get_metric_history(run.info.run_id, "validation_accuracy")
    assert [metric.value for metric in logged] == [
        epoch["validation_accuracy"] for epoch in trained.history[: len(logged)]
    ]
    assert "trained_weights.safetensors" in [file.path for file in client.list_artifacts(run.info.run_id)]


def registered_answers(work: Work, framework: str, trained: TrainingResult) -> pd.DataFrame:
    """What the registered version says of the bytes of a photograph of each label, in a process of its own."""
    places = {"tracking_uri": work.places.tracking_uri, "mlflow_run_id": work.places.mlflow_run_id}
    assert trained.network
    classifier = TrainedClassifier(trained.network, LABELS, framework, MOBILENET_V2)
    uri = log_classifier(classifier, str(trained.model_uri), **places)
    version = ModelRegistry(tracking_uri=work.places.tracking_uri).register(uri, places["mlflow_run_id"], {})
    program = (
        "import sys, mlflow, pandas as pd; from pathlib import Path; uri, version, answers, *files = sys.argv[1:]; "
        "mlflow.set_tracking_uri(uri); model = mlflow.pyfunc.load_model(version); "
        "model.predict(pd.DataFrame({'content': [Path(file).read_bytes() for file in files]})).to_pickle(answers)"
    )
    answers = work.folder / "answers.pickle"
    files = [str(photographs(label)[0]) for label in LABELS]
    command = [sys.executable, "-c", program, places["tracking_uri"], version.uri, str(answers), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return pd.read_pickle(answers)


def test_a_backbone_folder_without_weights_is_named_with_what_it_holds(delta_spark: DeltaSpark, work: Work) -> None:
    folder = work.folder / "weights"
    folder.mkdir()
    (folder / "other.bin").touch()
    message = r"\AFileNotFoundError: .*weights, which holds other\.bin: expected .*mobilenet_v2_features"
    with TWO.started(delta_spark, "horovod", []) as run, pytest.raises(RankFailure, match=message):
        run(train_and_average, "torch", *work.arguments(backbone=str(folder)))
