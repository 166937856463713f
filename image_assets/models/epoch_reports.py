"""What an epoch came to, told while a training goes on."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def epoch_reporter(
    framework: str, *, epochs: int, tracking_uri: str, mlflow_run_id: str
) -> Callable[[dict[str, float]], None]:
    """A function that tells an epoch's figures to the terminal and to the MLflow run."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri)

    def report(figures: dict[str, float]) -> None:
        epoch, now = int(figures["epoch"]), int(time.time() * 1000)
        told = "  ".join(
            f"{name} {figures[key]:.3f}"
            for name, key in (("loss", "loss"), ("accuracy", "accuracy"), ("validation", "validation_accuracy"))
        )
        logger.info("%s epoch %s/%s  %s", framework, epoch, epochs, told)
        client.log_batch(
            mlflow_run_id, [Metric(key, value, now, epoch) for key, value in figures.items() if key != "epoch"]
        )

    return report


def no_report(figures: dict[str, float]) -> None:
    """Say nothing: only rank 0 reports."""
