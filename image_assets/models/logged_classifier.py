"""A trained model, logged to MLflow as the image classifier that every model becomes."""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from PIL import Image

from image_assets.models.onnx_model import write_onnx
from image_assets.models.run_models import log_to_run

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

NAME = "image_classifier"
FRAMEWORKS = {"tensorflow": ("tensorflow", "keras"), "torch": ("torch", "torchvision")}
PACKAGES = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "pyvips", "pyvips-binary", "simplejpeg")


def log_classifier(
    *,
    model_uri: str,
    labels: Sequence[str],
    framework: str,
    tracking_uri: str,
    mlflow_run_id: str,
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
        told = Path(folder) / "classifier.json"
        said = {"framework": framework, "labels": list(labels), "color": color}
        told.write_text(json.dumps(said, ensure_ascii=False))
        return log_to_run(
            NAME,
            pyfunc,
            tracking_uri=tracking_uri,
            mlflow_run_id=mlflow_run_id,
            python_model=str(here / "image_classifier.py"),
            artifacts={
                "model": model,
                "onnx": str(Path(folder, "network.onnx")),
                "pixels": str(here.parent / "pixels.py"),
                "engines": str(here / "engines.py"),
                "classifier": str(told),
            },
            model_config={"device": "auto"},
            signature=_signature(),
            input_example=_input_example(),
            pip_requirements=[f"{package}=={version(package)}" for package in (*PACKAGES, *FRAMEWORKS[framework])],
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
