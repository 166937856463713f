"""Two outcomes are compared by their weights, metrics and predictions."""

from dataclasses import replace
from math import inf, isnan, nan

import numpy as np
import pandas as pd
import pytest

from image_assets.jobs.reproduce_model import (
    Differences,
    TrainingOutcome,
    differences_markdown,
    largest_difference,
    state_digest,
    to_differences,
)


def predictions(*rows: tuple[str, str | None, float | None]) -> pd.DataFrame:
    return pd.DataFrame(
        [(path, path.upper(), label, probability) for path, label, probability in rows],
        columns=["path", "image_id", "label", "probability"],
    )


OUTCOME = TrainingOutcome(
    weights={"head.kernel": np.array([[1.0, 2.0]], np.float32), "head.bias": np.array([0.5], np.float32)},
    history=({"epoch": 1, "loss": 0.7, "seconds": 3.0}, {"epoch": 2, "loss": 0.4, "seconds": 2.0}),
    predictions=predictions(("a", "rose", 0.9), ("b", "daisy", 0.6), ("c", None, None)),
)


def test_order_and_duration_do_not_matter() -> None:
    other = TrainingOutcome(
        weights=dict(reversed(OUTCOME.weights.items())),
        history=tuple({**epoch, "seconds": 9.0} for epoch in OUTCOME.history),
        predictions=OUTCOME.predictions[::-1],
    )
    differences = to_differences(OUTCOME, other)
    assert differences == Differences(
        digests=(state_digest(OUTCOME.weights),) * 2,
        weights={"head.kernel": 0, "head.bias": 0},
        epochs=(2, 2),
        metrics=({"loss": 0}, {"loss": 0}),
        images=3,
        images_of_one=0,
        agreeing=1,
        probability=0,
    )
    assert differences.same
    assert "**Identical**" in differences_markdown(differences)


def test_differences_are_measured_and_reported() -> None:
    other = TrainingOutcome(
        weights={**OUTCOME.weights, "head.kernel": np.array([[1.0, 1.75]], np.float32)},
        history=({"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.5}),
        predictions=predictions(("a", "rose", 0.8), ("b", "rose", 0.6), ("c", None, None), ("d", "rose", 1.0)),
    )
    differences = to_differences(OUTCOME, other)
    assert not differences.same
    assert differences.weights == {"head.kernel": 0.25, "head.bias": 0}
    assert len(set(differences.digests)) == 2
    assert differences.metrics == ({"loss": 0}, {"loss": pytest.approx(0.1)})
    assert (differences.images, differences.images_of_one) == (3, 1)
    assert differences.agreeing == pytest.approx(2 / 3)
    assert differences.probability == pytest.approx(0.1)
    report = differences_markdown(differences)
    for line in ("**Different**", "| head.kernel | 0.25 |", "| 2 | 0.1 |", "66.67% of 3 images", "by up to 0.1;"):
        assert line in report


@pytest.mark.parametrize(
    "other",
    [
        replace(OUTCOME, weights={"head.kernel": OUTCOME.weights["head.kernel"]}),
        replace(OUTCOME, weights={**OUTCOME.weights, "head.bias": np.array([0.5], np.float64)}),
        replace(OUTCOME, history=OUTCOME.history[:1]),
        replace(OUTCOME, history=({"loss": 0.7}, {"accuracy": 0.4})),
        replace(OUTCOME, predictions=OUTCOME.predictions[:2]),
        replace(OUTCOME, predictions=OUTCOME.predictions.assign(label="rose")),
        replace(OUTCOME, predictions=OUTCOME.predictions.assign(probability=0.9)),
    ],
)
def test_any_difference_makes_outcomes_different_in_either_order(other: TrainingOutcome) -> None:
    assert not to_differences(OUTCOME, other).same
    assert not to_differences(other, OUTCOME).same
    assert "**Different**" in differences_markdown(to_differences(OUTCOME, other))


def test_outcomes_without_predictions_are_different() -> None:
    nothing = replace(OUTCOME, predictions=predictions())
    differences = to_differences(nothing, nothing)
    assert isnan(differences.agreeing)
    assert not differences.same


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ([nan, 1], [nan, 3], 2),
        ([nan, 1], [0, 1], inf),
        ([inf, 1], [inf, 1], 0),
        ([inf], [-inf], inf),
        ([], [], 0),
        ([1], [1, 1], inf),
    ],
)
def test_arrays_are_compared_value_by_value(before: list[float], after: list[float], difference: float) -> None:
    assert largest_difference(np.array(before), np.array(after)) == difference
