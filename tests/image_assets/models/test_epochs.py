"""Schedules, seeds and figures of epochs."""

import pytest

from image_assets.models.epochs import check_figures, learning_rate, to_seed
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
        check_figures(figures, 7)
