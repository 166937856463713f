"""What an epoch came to, told while a training goes on."""

import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta

from resources.progress_line import LINE_SECONDS

logger = logging.getLogger(__name__)


def epoch_reporter(
    framework: str, *, tracking_uri: str, mlflow_run_id: str
) -> Callable[[str, int, dict[str, float]], None]:
    """A function that tells an epoch's figures (of a phase, with so many epochs) to the terminal and to MLflow."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri)
    phases: dict[str, str] = {}
    told_at = -math.inf

    def report(phase: str, epochs: int, figures: dict[str, float]) -> None:
        nonlocal told_at
        epoch, now = int(figures["epoch"]), int(time.time() * 1000)
        if epoch in (1, epochs) or time.monotonic() - told_at >= LINE_SECONDS:
            logger.info("%s %s %s", framework, phase.replace("_", " "), in_words(epochs, figures))
            told_at = time.monotonic()
        # The head's figures and those of the blocks below it are curves of their own.
        prefix = phases.setdefault(phase, f"{phase}_" if phases else "")
        client.log_batch(
            mlflow_run_id,
            [Metric(f"{prefix}{key}", value, now, epoch) for key, value in figures.items() if key != "epoch"],
        )

    return report


def in_words(epochs: int, figures: dict[str, float]) -> str:
    """An epoch's figures on a line, and how long those after it take at most: a training may stop before them."""
    names = {"loss": "loss", "accuracy": "accuracy", "validation": "validation_accuracy"}
    told = [f"epoch {figures['epoch']:.0f}/{epochs}", *(f"{name} {figures[key]:.3f}" for name, key in names.items())]
    left = round((epochs - figures["epoch"]) * figures["seconds"])
    return "  ".join([*told, f"at most {timedelta(seconds=left)} left"] if left else told)


def no_report(phase: str, epochs: int, figures: dict[str, float]) -> None:
    """Say nothing: only rank 0 reports."""
