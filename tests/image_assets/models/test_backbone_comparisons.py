"""The leaderboard of backbones: what is compared, the figures of each, and those that fail."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from image_assets.models.backbone_comparisons import (
    ComparisonConfig,
    leaderboard_markdown,
    leaderboard_picture,
    ranked,
    to_compare,
    to_figures,
)
from image_assets.models.backbone_trials import Trial
from image_assets.models.backbones import CURRENT_BACKBONE
from image_assets.models.calibration import log_softmax
from tests.image_assets.conftest import Work, in_a_process
from tests.support.rank_programs import try_on_small_images

FIGURES = {"accuracy_low": 0.8, "accuracy_high": 0.95, "images_per_second": 40.0, "megabytes": 9.0}


def row(backbone: str, accuracy: float, validation: float) -> dict[str, object]:
    """A row with figures."""
    return {
        "backbone": backbone,
        "framework": "torch",
        "accuracy": accuracy,
        "validation_accuracy": validation,
        **FIGURES,
    }


ROWS = [
    {"backbone": "resnet50", "framework": "torch", "error": "no weights | of any kind"},
    row("mobilenet_v2", 0.9, 0.88),
    row("efficientnet_lite0", 0.89, 0.91),
]


def test_rows_are_ranked_by_validation_accuracy_and_errors_come_last() -> None:
    assert [found["backbone"] for found in ranked(ROWS)] == ["efficientnet_lite0", "mobilenet_v2", "resnet50"]


def test_the_leaderboard_has_every_row_as_table_and_picture() -> None:
    lines = leaderboard_markdown(ranked(ROWS)).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 0.890 | 0.800 | 0.950 |" in lines[2]
    assert "no weights / of any kind" in lines[-1]
    assert leaderboard_picture(ROWS).startswith(b"\x89PNG")


def test_figures_are_those_of_all_ranks() -> None:
    rng = np.random.default_rng(0)
    probabilities, label_indexes = np.exp(log_softmax(rng.normal(size=(200, 3)))), rng.integers(0, 3, 200)
    trials = [
        Trial("folder", 0.5, probabilities, label_indexes, seconds, speed, 9_000_000)
        for seconds, speed in ((3.0, 20.0), (4.0, 30.0))
    ]
    figures = to_figures(trials)
    assert figures["accuracy"] == accuracy_score(label_indexes, probabilities.argmax(axis=1))
    assert figures["accuracy_low"] < figures["accuracy"] < figures["accuracy_high"]
    assert (figures["training_seconds"], figures["images_per_second"], figures["megabytes"]) == (4, 50, 9)


def test_each_framework_compares_what_it_has_and_what_none_has_is_told() -> None:
    both = ComparisonConfig(backbones=["resnet50", "convnext_tiny"])
    pairs = [("resnet50", "tensorflow"), ("resnet50", "torch"), ("convnext_tiny", "torch")]
    assert to_compare(both, "none") == pairs
    only = ComparisonConfig(backbones=["convnext_tiny"], frameworks=["tensorflow"])
    assert to_compare(only, "none") == [("convnext_tiny", "tensorflow")]
    assert ("mobilenet_v2", "tensorflow") in to_compare(ComparisonConfig(), "none")
    packaged = to_compare(ComparisonConfig(frameworks=["tensorflow"]), "/nowhere")
    assert (CURRENT_BACKBONE.name, "tensorflow") in packaged
    assert ("mobilenet_v2", "tensorflow") not in packaged


@pytest.mark.parametrize("settings", [{"backbones": ["resnet"]}, {"frameworks": ["jax"]}, {"frameworks": []}])
def test_unknown_names_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ComparisonConfig(**settings)


@pytest.mark.training
@pytest.mark.slow
@pytest.mark.parametrize("framework", ["tensorflow", "torch"])
def test_a_head_is_tried_on_other_images(work: Work, framework: str) -> None:
    training, validation, plan, places = work.arguments(head_fit="closed_form", backbone="none")
    caches = (training, validation, validation)
    trial: Trial = in_a_process(try_on_small_images, framework, caches, plan, places)
    assert trial.origin == "untrained"
    assert sorted(trial.label_indexes) == [0] * 5 + [1] * 5
    assert np.allclose(trial.probabilities.sum(axis=1), 1)
    found = accuracy_score(trial.label_indexes, trial.probabilities.argmax(axis=1))
    assert found == pytest.approx(trial.validation_accuracy), "the same images here"
    assert trial.weight_bytes > 8_000_000
