"""What an epoch came to, told while a training goes on."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def epoch_reporter(
    framework: str, *, tracking_uri: str, mlflow_run_id: str
) -> Callable[[str, int, dict[str, float]], None]:
    """A function that tells an epoch's figures (of a phase, with so many epochs) to the terminal and to MLflow."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri)
    phases: dict[str, str] = {}

    def report(phase: str, epochs: int, figures: dict[str, float]) -> None:
        epoch, now = int(figures["epoch"]), int(time.time() * 1000)
        told = "  ".join(
            f"{name} {figures[key]:.3f}"
            for name, key in (("loss", "loss"), ("accuracy", "accuracy"), ("validation", "validation_accuracy"))
        )
        logger.info("%s %s epoch %s/%s  %s", framework, phase.replace("_", " "), epoch, epochs, told)
        # The head's figures and those of the blocks below it are curves of their own.
        prefix = phases.setdefault(phase, f"{phase}_" if phases else "")
        client.log_batch(
            mlflow_run_id,
            [Metric(f"{prefix}{key}", value, now, epoch) for key, value in figures.items() if key != "epoch"],
        )

    return report


def no_report(phase: str, epochs: int, figures: dict[str, float]) -> None:
    """Say nothing: only rank 0 reports."""
