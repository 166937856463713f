"""Schedules, seeds and figures of epochs."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from image_assets.models.embeddings import PrecomputedInputs
from image_assets.models.epochs import (
    Batch,
    Checkpoints,
    Phase,
    Progress,
    State,
    learning_rate,
    require_finite_loss,
    run_epochs,
    to_seed,
)
from image_assets.models.training_output import epoch_reporter
from image_assets.models.training_plan import Schedule

SCHEDULE = Schedule(epochs=5, learning_rate=0.1, warmup_epochs=1, patience=3, weight_decay=0, dropout=0)


def test_the_step_size_warms_up_to_that_of_all_ranks_and_falls_to_nothing() -> None:
    rates = [learning_rate(SCHEDULE, step, 10, 4) for step in range(50)]
    assert 0.1 < rates[0] < rates[5] < rates[9] == pytest.approx(0.4)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 <= rates[-1] < 0.001


def test_one_rank_begins_at_its_own_step_size() -> None:
    assert learning_rate(SCHEDULE, 0, 10, 1) == pytest.approx(0.1)


def test_seeds_differ_by_every_part_and_are_always_the_same() -> None:
    seeds = {to_seed(seed, rank, step) for seed in range(3) for rank in range(3) for step in range(3)}
    assert len(seeds) == 27
    assert to_seed(1, 2, 3) == to_seed(1, 2, 3) < 2**31


def test_a_loss_that_is_no_number_is_named_with_the_remedy() -> None:
    figures = {"epoch": 3.0, "loss": float("nan"), "validation_loss": 1.0}
    with pytest.raises(FloatingPointError, match=r"epoch 3 ends with loss nan .* lower the learning rate, which is 7"):
        require_finite_loss(figures, 7)


class Alone:
    """The only rank."""

    rank = local_rank = 0
    size = 1

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, np.float64)

    def broadcast(self, value: Any) -> Any:
        return value

    def averaged(self, gradients: Sequence[Any]) -> list[Any]:
        return list(gradients)


class Counter:
    """A network with one weight, which each step raises by 1. Its loss is the distance from 3.5; it is never right."""

    def __init__(self) -> None:
        self.weight = np.zeros(1, np.float32)

    def step(self, batch: Batch, learning_rate: float, seed: int) -> np.ndarray:
        self.weight = self.weight + 1
        return np.array([0.0, 0.0, 1.0])

    def evaluate(self, batch: Batch) -> np.ndarray:
        return np.array([abs(float(self.weight[0]) - 3.5), 0.0, 1.0])

    def logits(self, batch: Batch) -> np.ndarray:
        return np.zeros((1, 1))

    def weights(self) -> State:
        return {"weight": self.weight.copy()}

    def load_weights(self, weights: State) -> None:
        self.weight = weights["weight"].copy()

    def optimizer_state(self) -> State:
        return {}

    def load_optimizer_state(self, state: State) -> None:
        pass


ONE = PrecomputedInputs(
    np.zeros((1, 1)), np.zeros(1, np.int64), np.zeros(1, np.int64), steps=1, batch_size=1, seed=(0, 0)
)


def counted_to(
    best_of: int,
    averaged_epochs: int,
    folder: Path,
    validation: PrecomputedInputs | None = ONE,
    reported: list[float] | None = None,
) -> tuple[Counter, Progress]:
    """A network trained for so many epochs, each of which judges the mean over the last weights."""
    schedule = replace(SCHEDULE, epochs=best_of, averaged_epochs=averaged_epochs, patience=9)
    epochs = [] if reported is None else reported
    network, phase = Counter(), Phase("count", schedule, 0, lambda _, __, figures: epochs.append(figures["epoch"]))
    return network, run_epochs(
        network, Alone(), ONE, validation, phase=phase, checkpoints=Checkpoints(str(folder), "0a1b")
    )


@pytest.mark.parametrize(
    ("averaged_epochs", "losses", "best_epoch", "weight"),
    [(1, [2.5, 1.5, 0.5, 0.5, 1.5], 3, 3), (2, [2.5, 2, 1, 0, 1], 4, 3.5), (9, [2.5, 2, 1.5, 1, 0.5], 5, 3)],
)
def test_an_epoch_is_judged_by_the_mean_of_the_last_weights_and_the_next_goes_on_from_its_own(
    averaged_epochs: int, losses: list[float], best_epoch: int, weight: float, tmp_path: Path
) -> None:
    network, progress = counted_to(5, averaged_epochs, tmp_path)
    assert [figures["validation_loss"] for figures in progress.history] == losses
    assert (progress.best_epoch, network.weight) == (best_epoch, [weight])


def test_without_validation_images_the_last_epoch_counts(tmp_path: Path) -> None:
    network, progress = counted_to(5, 2, tmp_path, validation=None)
    assert [[*figures] for figures in progress.history] == [["epoch", "loss", "accuracy", "seconds"]] * 5
    assert (progress.best_epoch, network.weight) == (5, [4.5])


@pytest.mark.parametrize("averaged_epochs", [1, 3])
def test_a_killed_training_averages_the_same_epochs(averaged_epochs: int, tmp_path: Path) -> None:
    counted_to(3, averaged_epochs, tmp_path / "killed")
    reported: list[float] = []
    resumed, progress = counted_to(5, averaged_epochs, tmp_path / "killed", reported=reported)
    assert reported == [1, 2, 3, 4, 5], "an attempt has its own MLflow run, which gets the epochs before it, too"
    whole, other = counted_to(5, averaged_epochs, tmp_path / "whole")
    assert (resumed.weight, progress.best, progress.best_epoch) == (whole.weight, other.best, other.best_epoch)
    assert [each["validation_loss"] for each in progress.history] == [each["validation_loss"] for each in other.history]


class Words(logging.Handler):
    """What was logged, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def words() -> Iterator[Words]:
    """What ranks tell of their epochs."""
    logger, words = logging.getLogger("image_assets.models"), Words()
    logger.addHandler(words)
    before, logger.level = logger.level, logging.INFO
    yield words
    logger.removeHandler(words)
    logger.level = before


def test_epochs_are_told_seconds_apart_and_mlflow_gets_all_of_them(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri, now = f"sqlite:///{tmp_path / 'mlflow.db'}", [0.0]
    client = MlflowClient(uri)
    mlflow_run_id = client.create_run("0").info.run_id
    report = epoch_reporter("torch", tracking_uri=uri, mlflow_run_id=mlflow_run_id)
    monkeypatch.setattr("image_assets.models.training_output.time.monotonic", lambda: now[0])
    for epoch in range(1, 13):
        now[0] += 4
        figures = {"epoch": epoch, "loss": 0.5, "accuracy": 0.75, "validation_accuracy": 0.7, "seconds": 4.0}
        report("fine_tuning", 12, figures)
    phases = [line.split("  ")[0] for line in words.lines]
    assert phases == [f"torch fine tuning epoch {epoch}/12" for epoch in (1, 4, 7, 10, 12)]
    assert words.lines[0].endswith("loss 0.500  accuracy 0.750  validation 0.700  at most 0:00:44 left")
    assert words.lines[-1].endswith("validation 0.700")
    assert len(client.get_metric_history(mlflow_run_id, "loss")) == 12
