"""Tests of networks as ONNX, beside the versions that they are from."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.models.logged_classifier import log_classifier
from image_assets.models.onnx_model import write_onnx
from image_assets.pixels import to_pixels
from tests.image_assets.models.conftest import in_a_process

LABELS = ["red", "größe"]


def logged_tensorflow_network(tracking_uri: str, mlflow_run_id: str) -> str:
    """A small network with random weights, logged as the large ones are."""
    import keras

    from image_assets.models import tensorflow_training

    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((224, 224, 3), dtype="uint8", name="pixels"),
            layers.Rescaling(1 / 127.5, offset=-1.0),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu6"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, kernel_initializer=keras.initializers.RandomNormal(stddev=2.0)),
            layers.Softmax(),
        ]
    )
    return tensorflow_training.log_model(network, 2, tracking_uri, mlflow_run_id)


def logged_torch_network(tracking_uri: str, mlflow_run_id: str) -> str:
    """A small network with random weights, logged as the large ones are."""
    import torch
    import torchvision
    from torch import nn

    from image_assets.models import torch_training

    torch.manual_seed(0)
    network = nn.Sequential(
        torchvision.ops.Permute([0, 3, 1, 2]),
        torchvision.transforms.ConvertImageDtype(torch.float32),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(4, 2),
        nn.Softmax(1),
    )
    network[7].weight.data *= 8
    return torch_training.log_model(network.eval().requires_grad_(False), 2, tracking_uri, mlflow_run_id)


LOGGED = {"tensorflow": logged_tensorflow_network, "torch": logged_torch_network}


def version_of(framework: str, folder: Path, color: Literal["rgb", "gray"]) -> Path:
    """A logged classifier around a small network, as MLflow downloads it."""
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.create_experiment("networks", (folder / "artifacts").as_uri())
    mlflow_run_id = client.create_run(experiment).info.run_id
    network = in_a_process(LOGGED[framework], tracking_uri, mlflow_run_id)
    uri = log_classifier(
        model_uri=network,
        labels=LABELS,
        framework=framework,
        tracking_uri=tracking_uri,
        mlflow_run_id=mlflow_run_id,
        color=color,
    )
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder / "version")))


def plain_png(color: tuple[int, int, int]) -> bytes:
    """An image of one color."""
    content = BytesIO()
    Image.new("RGB", (60, 40), color).save(content, "PNG")
    return content.getvalue()


# Any: MLflow has no type for what a pyfunc answers.
def answers(version: Path, contents: list[bytes]) -> Any:
    """What the version says of images."""
    model = mlflow.pyfunc.load_model(str(version), model_config={"device": "cpu"})
    return model.predict(pd.DataFrame({"content": contents}))


@pytest.mark.training
@pytest.mark.parametrize(("framework", "color"), [("tensorflow", "rgb"), ("torch", "gray")])
def test_the_network_answers_as_its_version_does(framework: str, color: Literal["rgb", "gray"], tmp_path: Path) -> None:
    import onnxruntime

    version = version_of(framework, tmp_path, color)
    contents = [plain_png((50 * number, 60 * number, 40 * number)) for number in range(5)]
    file = tmp_path / "network.onnx"

    write_onnx(version, file)

    session = onnxruntime.InferenceSession(file)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == LABELS
    assert (told["color"], told["framework"]) == (color, framework)
    expected = np.stack(in_a_process(answers, version, contents)["probabilities"])
    assert np.ptp(expected[:, 0]) > 0.01  # the images are told apart
    pixels = np.stack([to_pixels(content, 224, color) for content in contents])
    for batch in (pixels, pixels[:1]):
        (found,) = session.run(None, {"pixels": batch})
        np.testing.assert_allclose(found, expected[: len(batch)], atol=1e-4)
