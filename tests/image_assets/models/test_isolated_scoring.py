"""The image on which a version fails, found by halves."""

from pathlib import Path

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from image_assets.images.isolated_process import ItemFailure
from image_assets.models.isolated_scoring import LoadableVersion, load_version, predict_by_bisection
from tests.support.registered_versions import saved_pickle


def images(count: int) -> pd.DataFrame:
    return pd.DataFrame({"content": [b""] * count, "path": [str(number) for number in range(count)]})


def test_a_batch_that_is_answered_is_asked_once() -> None:
    asked: list[int] = []

    def ask(batch: pd.DataFrame) -> pd.DataFrame:
        asked.append(len(batch))
        return pd.DataFrame({"label": batch["path"], "probability": 1.0, "probabilities": [[1.0]] * len(batch)})

    answers = predict_by_bisection(images(32), ask)
    assert asked == [32]
    assert answers["fault"].isna().all()


def test_bad_images_alone_have_faults_and_few_questions_are_asked() -> None:
    bad, asked = {"3", "17"}, 0

    def ask(batch: pd.DataFrame) -> pd.DataFrame | ItemFailure:
        nonlocal asked
        asked += 1
        if bad & set(batch["path"]):
            return ItemFailure("raised", "ValueError: no")
        return pd.DataFrame(
            {"label": batch["path"], "probability": 1.0, "probabilities": [[1.0]] * len(batch)}, index=batch.index
        )

    answers = predict_by_bisection(images(32), ask)
    assert answers.index.tolist() == list(range(32))
    faults = answers["fault"]
    assert faults[faults.notna()].to_dict() == {3: "raised: ValueError: no", 17: "raised: ValueError: no"}
    assert answers["label"].isna().sum() == 2
    assert asked == 1 + 2 * (5 + 4)


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # the process that loads it decides
    model, created = saved_pickle(tmp_path, "pickle")
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        load_version(LoadableVersion(f"sqlite:///{tmp_path}/mlflow.db", model.as_uri(), "cpu"))
    assert not created.exists()
