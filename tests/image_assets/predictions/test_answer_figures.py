"""The answers of a version are counted by label and by how sure they are."""

from pathlib import Path

import pandas as pd

from image_assets.predictions.image_predictions import answers_look, by_sureness
from resources.delta.thin_tables import ThinTables
from tests.gallery.small_home import write_photographs


def test_answers_are_counted_by_label_and_sureness() -> None:
    answers = pd.DataFrame({"label": ["a", "b", "b", "b"], "probability": [0.9, 0.89, 0.6, 0.2]})
    counts = by_sureness(answers)
    assert counts.index.tolist() == ["b", "a"]
    assert counts.to_numpy().tolist() == [[0, 2, 1], [1, 0, 0]]


def test_only_the_versions_answers_are_drawn(thin_tables: ThinTables, landing: Path) -> None:
    assert answers_look(thin_tables, 1) == {}
    write_photographs(thin_tables, landing, 6)
    assert str(answers_look(thin_tables, 2)["answers"].value).startswith("6 answers of version 2")
    assert answers_look(thin_tables, 3) == {}
