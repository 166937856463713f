"""Schedules, seeds and figures of epochs."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from image_assets.models.epochs import learning_rate, require_finite_loss, to_seed
from image_assets.models.rank_training import epoch_reporter
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
    monkeypatch.setattr("image_assets.models.rank_training.time.monotonic", lambda: now[0])
    for epoch in range(1, 13):
        now[0] += 4
        figures = {"epoch": epoch, "loss": 0.5, "accuracy": 0.75, "validation_accuracy": 0.7, "seconds": 4.0}
        report("fine_tuning", 12, figures)
    phases = [line.split("  ")[0] for line in words.lines]
    assert phases == [f"torch fine tuning epoch {epoch}/12" for epoch in (1, 4, 7, 10, 12)]
    assert words.lines[0].endswith("loss 0.500  accuracy 0.750  validation 0.700  at most 0:00:44 left")
    assert words.lines[-1].endswith("validation 0.700")
    assert len(client.get_metric_history(mlflow_run_id, "loss")) == 12
