"""A version abstains where the probability of the most probable label is below that label's threshold."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from image_assets.models.isolated_scoring import LATER_COLUMNS, REQUIRED_COLUMNS
from image_assets.models.lineage import thresholds_of
from image_assets.models.scoring import NO_DISTRIBUTION, to_valid_prediction
from resources.mlflow.model_registry import ModelVersion
from tests.support.brightness_version import SIDE, saved_brightness

VERSION = ModelVersion(1, "None", (), "", "models:/image_classifier/1", {"labels": '["bright", "dark"]'})
NOTHING = dict.fromkeys((*REQUIRED_COLUMNS, *LATER_COLUMNS, "fault"))


def grays(*levels: int) -> list[np.ndarray]:
    """An image of each brightness, from 0 to 255."""
    return [np.full((SIDE, SIDE, 3), level, np.uint8) for level in levels]


@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [
        (None, ["bright", "bright", "dark"]),
        ([0.0, 0.0], ["bright", "bright", "dark"]),
        ([0.8, 0.0], ["bright", None, "dark"]),
        ([0.8, None], ["bright", None, None]),
        ([204 / 255, 1.0], ["bright", None, None]),
    ],
)
def test_each_label_has_its_threshold(
    tmp_path: Path, thresholds: list[float | None] | None, labels: list[str | None]
) -> None:
    version = mlflow.pyfunc.load_model(str(saved_brightness(tmp_path, thresholds=thresholds)))
    answers = version.predict(grays(204, 153, 51))  # 0.8, 0.6 and 0.2 of 255
    assert answers["label"].tolist() == labels
    assert answers["abstained"].tolist() == [label is None for label in labels]
    assert answers["most_probable_label"].tolist() == ["bright", "bright", "dark"]
    assert answers["probability"].tolist() == pytest.approx([0.8, 0.6, 0.8])
    assert [len(of) for of in answers["probabilities"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("tag", "thresholds"),
    [
        ('{"by_label": [0.5, null], "coverage": 0.9, "precision": null}', [0.5, None]),
        ('{"by_label": [0.5], "coverage": 0.9, "precision": null}', None),
        ('{"by_label": "all", "coverage": 0.9, "precision": null}', None),
        ("[0.5, 0.5]", None),
        ("none", None),
    ],
)
def test_a_tag_that_somebody_edited_gives_no_thresholds(tag: str, thresholds: list[float | None] | None) -> None:
    assert thresholds_of(replace(VERSION, tags=VERSION.tags | {"thresholds": tag})) == thresholds


def test_an_unreadable_image_is_no_abstention(tmp_path: Path) -> None:
    version = mlflow.pyfunc.load_model(str(saved_brightness(tmp_path, thresholds=[1.0, 1.0])))
    (answer,) = version.predict([b"no image"]).to_dict("records")
    assert (answer["label"], answer["abstained"], answer["most_probable_label"]) == (None, None, None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"label": "dark"}, {"label": "dark", "abstained": None, "most_probable_label": "dark"}),  # an old version's
        ({"label": None, "abstained": True, "most_probable_label": "dark"}, {"label": None, "abstained": True}),
        ({"label": "dark", "abstained": False, "most_probable_label": "dark"}, {"label": "dark", "abstained": False}),
        ({"label": "dark", "abstained": np.nan, "most_probable_label": np.nan}, {"label": "dark", "abstained": None}),
        ({"label": "dark", "abstained": True, "most_probable_label": "dark"}, {"label": None, "abstained": True}),
    ],
)
def test_an_abstention_is_a_valid_prediction(answer: dict, expected: dict) -> None:
    found = to_valid_prediction({**NOTHING, "probability": 0.6, "probabilities": [0.4, 0.6], **answer}, VERSION)
    assert found | expected == found
    assert (found["probability"], found["most_probable_label"], found["fault"]) == (0.6, "dark", None)


@pytest.mark.parametrize(
    "answer",
    [
        {"probabilities": 0.5},
        {"probabilities": "0.4, 0.6"},
        {"probabilities": [0.4, "0.6"]},
        {"probabilities": [0.4, None]},
        {"probability": "high"},
        {"probability": [0.6]},
        {"label": 1},
    ],
    ids=str,
)
def test_an_answer_of_other_types_is_a_fault_of_its_row(answer: dict) -> None:
    found = to_valid_prediction(
        {**NOTHING, "label": "dark", "probability": 0.6, "probabilities": [0.4, 0.6], **answer}, VERSION
    )
    assert {name: value for name, value in found.items() if value is not None} == {"fault": NO_DISTRIBUTION}


def test_a_failed_prediction_has_not_abstained() -> None:
    failed = {**NOTHING, "probabilities": [0.4], "probability": 0.4, "abstained": True, "most_probable_label": "dark"}
    found = to_valid_prediction(pd.Series(failed, dtype=object).to_dict(), VERSION)
    assert {name for name, value in found.items() if value is not None} == {"fault"}
