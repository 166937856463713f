"""The common recipe's pyfunc: reads paths, applies the framework's transformations, runs the framework's model."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

SIDE_PIXELS = 224
BATCH_SIZE = 32


def file_of(path: str) -> str:
    """The file of a URL as Spark writes it."""
    return path.removeprefix("file:")


def to_image(path: str) -> Image.Image:
    """The image, decoded and resized with Pillow."""
    image = Image.open(file_of(path)).convert("RGB")
    return image.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR)


class RecipeClassifier(PythonModel):
    """Takes paths; returns label, probability and probabilities."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model with its framework."""
        config = context.model_config or {}
        self.labels: list[str] = config["labels"]
        self.probabilities = {"torch": eager_torch, "tensorflow": keras_model}[config["framework"]](
            context.artifacts["model"], len(self.labels)
        )

    # MLflow's own `predict` has no body, so pyright infers that it returns None.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """One row per path."""
        paths = model_input["path"].tolist()
        batches = [paths[start : start + BATCH_SIZE] for start in range(0, len(paths), BATCH_SIZE)]
        probabilities = np.concatenate([self.probabilities([to_image(path) for path in batch]) for batch in batches])
        best = probabilities.argmax(1)
        return pd.DataFrame(
            {
                "label": [self.labels[index] for index in best],
                "probability": probabilities.max(1).astype(float),
                "probabilities": probabilities.astype(float).tolist(),
            }
        )


def eager_torch(folder: str, labels: int) -> Any:
    """The torchvision model with the trained weights."""
    import torch
    import torchvision
    from mlflow import pytorch

    from benchmarks.recipe_torch import preprocessed

    trained = pytorch.load_model(folder).state_dict()
    weights = {name: value for name, value in trained.items() if name.startswith("features.")}
    model = torchvision.models.mobilenet_v2(num_classes=labels)
    model.load_state_dict(
        {**weights, "classifier.1.weight": trained["head.weight"], "classifier.1.bias": trained["head.bias"]}
    )
    model.eval()

    def probabilities(images: list[Image.Image]) -> np.ndarray:
        with torch.no_grad():
            batch = torch.from_numpy(np.stack([preprocessed(image) for image in images]))
            return torch.softmax(model(batch), dim=1).numpy()

    return probabilities


def keras_model(folder: str, labels: int) -> Any:
    """The Keras model as it was trained; scaling is part of it."""
    from mlflow import tensorflow

    model = tensorflow.load_model(folder)
    return lambda images: model.predict(np.stack([np.asarray(image) for image in images]), verbose=0)


mlflow.models.set_model(RecipeClassifier())
