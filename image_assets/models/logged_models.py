"""A trained model, logged to MLflow as the image classifier that every model becomes."""

import json
import math
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from image_assets.models.backbones import Backbone
from image_assets.models.engines import Network, onnx_network
from image_assets.models.frameworks import FRAMEWORKS
from resources.processes.child_process import end_with_parent

if TYPE_CHECKING:
    import onnx

OPSET = 18
INPUT, OUTPUT = "pixels", "probabilities"
TOLERANCE = 1e-3  # of a probability
TRIED_IMAGES = 8
NOISE_SQUARES = 7  # per side


class DifferentAnswers(ValueError):
    """A network answers otherwise than the ONNX that was made of it."""


def write_onnx(framework: str, model: Path, file: Path) -> None:
    """Write the network of a model in the framework's own flavor, in a local folder, as an ONNX file.

    It takes `pixels`, uint8 (n, side, side, 3), and gives `probabilities`, float32 (n, labels); the normalisation is in
    it. DifferentAnswers when the file does not answer as the network does.
    """
    # Apart, as two frameworks in one process do not get along; a run that is killed takes the export with it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with_parent, initargs=(os.getpid(),)) as executor:
        executor.submit(_write_in_process, framework, model, file).result()


def side_of(network: "onnx.ModelProto") -> int:
    """The width and height in pixels of the images that an exported network takes."""
    return network.graph.input[0].type.tensor_type.shape.dim[1].dim_value


def require_same_answers(network: Network, other: Network, side_pixels: int) -> None:
    """Raise DifferentAnswers unless both give the same probabilities for some noise, within TOLERANCE."""
    # Noise in large squares: that of single pixels would average out before it reaches the head.
    noise = np.random.default_rng(0).integers(0, 256, (TRIED_IMAGES, NOISE_SQUARES, NOISE_SQUARES, 3), np.uint8)
    square = math.ceil(side_pixels / NOISE_SQUARES)
    pixels = np.kron(noise, np.ones((1, square, square, 1), np.uint8))[:, :side_pixels, :side_pixels]
    difference = float(np.abs(network(pixels) - other(pixels)).max())
    if not difference <= TOLERANCE:
        raise DifferentAnswers(
            f"probabilities differ by {difference:.2g} between a network and its ONNX: expected {TOLERANCE:g} at most; "
            "is one of the packages that export it another version than pyproject.toml says?"
        )


def _write_in_process(framework: str, model: Path, file: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    warnings.simplefilter("ignore", FutureWarning)  # of torch, of its own exporter
    import onnx

    exported, network = FRAMEWORKS[framework].network.to_onnx(str(model), OPSET, INPUT, OUTPUT)
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, file)
    require_same_answers(network, onnx_network(str(file)), side_of(exported))


@dataclass(frozen=True)
class UnvalidatedFlavor:
    """A flavor as `Model.log` takes it that is told to try no input example: its `save_model` knows nothing of that."""

    flavor: ModuleType

    # Any: what a flavor wants to be told differs by flavor.
    def save_model(self, *, validate_serving_input: bool, **saved: Any) -> None:
        """Save a model in the flavor."""
        self.flavor.save_model(**saved)


def log_to_run(name: str, flavor: ModuleType, *, tracking_uri: str, mlflow_run_id: str, **saved: Any) -> str:
    """Log a model to the run, in the flavor (a module of MLflow's such as `mlflow.pytorch`); the model's URI.

    The flavors' own `log_model` would start the run again in this process, and end it when the process ends; and
    without an active run a model would land in the default experiment, not in the run's. To try an input example,
    MLflow would load the model, and its framework, into this process.
    """
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    experiment_id = client.get_run(mlflow_run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name=name, source_run_id=mlflow_run_id)
    logged = Model.log(
        artifact_path=None,
        name=name,
        flavor=UnvalidatedFlavor(flavor),
        run_id=mlflow_run_id,
        model_id=model.model_id,
        validate_serving_input=False,
        **saved,
    )
    return logged.model_uri


if TYPE_CHECKING:
    from mlflow.models import ModelSignature

NAME = "image_classifier"
PACKAGES = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "pyvips", "pyvips-binary", "simplejpeg")


def log_classifier(
    *,
    model_uri: str,
    labels: Sequence[str],
    framework: str,
    tracking_uri: str,
    mlflow_run_id: str,
    backbone: Backbone,
    color: Literal["rgb", "gray"] = "rgb",
) -> str:
    """Log the classifier around a model that is in MLflow in its own flavor; the classifier's URI.

    `color` is what the model was trained on: a version of gray looks at every image in gray.

    Neither framework is imported into this process. What is stored is code, not a pickled object.
    """
    import mlflow
    from mlflow import pyfunc

    here = Path(__file__).parent
    mlflow.set_tracking_uri(tracking_uri)  # download_artifacts knows a model by its URI only there
    with tempfile.TemporaryDirectory() as folder:
        model = mlflow.artifacts.download_artifacts(model_uri, dst_path=str(Path(folder, "model")))
        write_onnx(framework, Path(model), Path(folder, "network.onnx"))
        classifier_file = Path(folder) / "classifier.json"
        classifier = {
            "framework": framework,
            "labels": list(labels),
            "color": color,
            "backbone": backbone.name,
            "side_pixels": backbone.side_pixels,
        }
        classifier_file.write_text(json.dumps(classifier, ensure_ascii=False))
        return log_to_run(
            NAME,
            pyfunc,
            tracking_uri=tracking_uri,
            mlflow_run_id=mlflow_run_id,
            python_model=str(here / "image_classifier.py"),
            artifacts={
                "model": model,
                "onnx": str(Path(folder, "network.onnx")),
                "pixels": str(here.parent / "images" / "pixels.py"),
                "engines": str(here / "engines.py"),
                "framework": str(FRAMEWORKS[framework].network_file),
                "classifier": str(classifier_file),
            },
            model_config={"device": "auto"},
            signature=_signature(),
            input_example=_input_example(),
            pip_requirements=[
                f"{package}=={version(package)}" for package in (*PACKAGES, *FRAMEWORKS[framework].packages)
            ],
        )


def _input_example() -> pd.DataFrame:
    """One row as the classifier takes it: a small image's bytes."""
    image = BytesIO()
    Image.new("RGB", (8, 8), "tomato").save(image, "PNG")
    return pd.DataFrame({"content": [image.getvalue()], "path": [None]})


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        Schema(
            [
                ColSpec(DataType.binary, "content", required=False),
                ColSpec(DataType.string, "path", required=False),
            ]
        ),
        Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )
