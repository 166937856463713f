"""Figures of an evaluation are small PNGs, whatever the answers are."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.models.evaluation import answers_by_label, evaluate, mark_right
from image_assets.models.evaluation_report import Report, precision_and_recall, reliability_diagram
from resources.mlflow.model_registry import ModelVersion


def answers(images: int, labels: int, answered: float = 1) -> tuple[pd.DataFrame, list[str]]:
    """Judged answers that are right half of the time, and the labels' names."""
    random = np.random.default_rng(0)
    names = [f"a long name of $label_{{ {number}" for number in range(labels)]
    probability = np.where(np.arange(images) < answered * images, random.random(images), np.nan)
    true = random.choice(names, images)
    predicted = np.where(random.random(images) < 0.5, true, random.choice(names, images))
    paths = [str(number) for number in range(images)]
    columns = {"path": paths, "image_id": paths, "true_label": true, "label": predicted, "probability": probability}
    frame = pd.DataFrame(columns).assign(probabilities=[[1 / labels] * labels] * images)
    return mark_right(frame), names


@pytest.mark.parametrize(("images", "labels", "answered"), [(1, 2, 1), (3, 2, 0), (3000, 500, 0.9)], ids=str)
def test_they_are_pngs_that_fit(images: int, labels: int, answered: float) -> None:
    found, names = answers(images, labels, answered)
    for picture in (reliability_diagram(found), precision_and_recall(evaluate(found, names))):
        assert Image.open(BytesIO(picture)).format == "PNG"
        assert max(Image.open(BytesIO(picture)).size) < 1000
        assert len(picture) <= 100_000


def test_a_version_that_is_too_sure_looks_unlike_one_that_is_not() -> None:
    found, _ = answers(60, 2)
    surer = found.assign(probability=found["probability"] / 2 + 0.5)
    assert reliability_diagram(found) != reliability_diagram(surer)


def test_the_title_of_a_report_does_without_a_framework() -> None:
    found, names = answers(60, 2)
    evaluation = evaluate(found, names)
    report = Report(ModelVersion(3, "None", (), "", "", {}), evaluation, (), None, {})
    assert report.title.startswith(f"version 3 (unknown framework), accuracy {evaluation.accuracy:.3f} (")
    assert "test_coverage" not in report.metrics
    abstaining = replace(report, abstention=answers_by_label(found, names, [0.5] * len(names)))
    assert abstaining.metrics["test_coverage"] == evaluation.coverage
    assert abstaining.metrics["test_answered_accuracy"] == evaluation.answered_accuracy
