"""What the ranks of a training log to the terminal and to MLflow."""

import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from image_assets.models.classifier import Classifier
from image_assets.models.epochs import State
from image_assets.models.logged_models import onnx_with_head, verified_onnx
from image_assets.models.training_plan import OutputLocations
from resources.progress import LINE_SECONDS

WEIGHTS_FILE = "trained_weights.safetensors"  # an artifact of the MLflow run
logger = logging.getLogger(__name__)


def epoch_reporter(
    framework: str, *, tracking_uri: str, mlflow_run_id: str
) -> Callable[[str, int, dict[str, float]], None]:
    """A function that logs an epoch's metrics to the terminal and to MLflow; see `Phase.report`."""
    phases: dict[str, str] = {}
    reported_at = -math.inf

    def report(phase: str, epochs: int, figures: dict[str, float]) -> None:
        # Importing MLflow takes a second, which would delay the first epoch.
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        nonlocal reported_at
        epoch, now = int(figures["epoch"]), int(time.time() * 1000)
        if epoch in (1, epochs) or time.monotonic() - reported_at >= LINE_SECONDS:
            logger.info("%s %s %s", framework, phase.replace("_", " "), epoch_line(epochs, figures))
            reported_at = time.monotonic()
        # Metrics of later phases get a prefix: MLflow would join them with the head's into one curve.
        prefix = phases.setdefault(phase, f"{phase}_" if phases else "")
        MlflowClient(tracking_uri).log_batch(
            mlflow_run_id,
            [Metric(f"{prefix}{key}", value, now, epoch) for key, value in figures.items() if key != "epoch"],
        )

    return report


def epoch_line(epochs: int, figures: dict[str, float]) -> str:
    """An epoch's metrics in one line, with the longest time left for its phase: early stopping may end it sooner."""
    names = {"loss": "loss", "accuracy": "accuracy", "validation": "validation_accuracy"}
    parts = [
        f"epoch {figures['epoch']:.0f}/{epochs}",
        *(f"{name} {figures[key]:.3f}" for name, key in names.items() if key in figures),
    ]
    left = round((epochs - figures["epoch"]) * figures["seconds"])
    return "  ".join([*parts, f"at most {timedelta(seconds=left)} left"] if left else parts)


def no_report(phase: str, epochs: int, figures: dict[str, float]) -> None:
    """Log nothing; only rank 0 reports."""


def log_weights(network: Classifier, weights: State, locations: OutputLocations) -> str:
    """Log the trained weights, for reproductions to compare, and the model; the model's URI."""
    from mlflow import MlflowClient
    from safetensors.numpy import save_file

    with TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS_FILE
        save_file(weights, file)
        MlflowClient(locations.tracking_uri).log_artifact(locations.mlflow_run_id, str(file))
    return network.log(locations)


def to_onnx(network: Classifier, embedding_backbone: str, side_pixels: int, locations: OutputLocations) -> bytes:
    """The content of the version's ONNX file; a backbone that is unchanged and was exported before gets a head."""
    exported = locations.exported
    if exported and exported.backbone == embedding_backbone:
        return onnx_with_head(Path(exported.file), *network.head())
    return verified_onnx(*network.export(), side_pixels)
