"""The answers of a version are counted by label and by confidence."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from image_assets.predictions.image_predictions import answers_metadata, by_confidence
from resources.delta.delta_tables import DeltaTables
from resources.mlflow.model_registry import ModelVersion
from tests.gallery.small_home import write_photographs


def test_answers_are_counted_by_label_and_confidence() -> None:
    answers = pd.DataFrame({"label": ["a", "b", "b", "b"], "probability": [0.9, 0.89, 0.6, 0.2]})
    counts = by_confidence(answers)
    assert counts.index.tolist() == ["b", "a"]
    assert counts.to_numpy().tolist() == [[0, 2, 1], [1, 0, 0]]


def test_only_the_versions_answers_are_drawn(delta_tables: DeltaTables, landing: Path) -> None:
    first, second = (ModelVersion(number, "None", (), "", "", {}) for number in (1, 2))
    assert answers_metadata(delta_tables, first) == {}
    write_photographs(delta_tables, landing, 6)
    assert str(answers_metadata(delta_tables, second)["answers"].value).startswith("6 predictions of version 2")
    assert answers_metadata(delta_tables, replace(second, version=3)) == {}
    assert answers_metadata(delta_tables, replace(second, name="another_classifier")) == {}
