"""The image on which a version fails, found by halves; processes that stay to predict again."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from image_assets.images.isolated_process import ItemFailure
from image_assets.models.isolated_scoring import (
    KEPT_PROCESSES,
    LoadableVersion,
    guarded_predictions,
    load_version,
    predict_by_bisection,
    stop_kept_processes,
)
from tests.support.registered_versions import saved_model, saved_pickle

ROOT = Path(__file__).parents[3]
# Its label is the process that predicts; it raises at an image called `bad`.
PROCESS = """
    import os

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Process(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            if "bad" in set(model_input["path"]):
                os._exit(1)
            columns = {"label": str(os.getpid()), "probability": 1.0, "probabilities": [[1.0]] * len(model_input)}
            return pd.DataFrame(columns, index=model_input.index)


    set_model(Process())
"""


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


@pytest.fixture(scope="module")
def process_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model whose label is its process."""
    return saved_model(PROCESS, tmp_path_factory.mktemp("models"), "process").as_uri()


def process_of(version: LoadableVersion, path: str = "good") -> int | None:
    """The process in which the version predicts an image; None if there is a fault."""
    (answers,) = guarded_predictions(version, [pd.DataFrame({"content": [b""], "path": [path]})])
    return None if answers["label"].isna()[0] else int(answers["label"][0])


def is_alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_of_a_version_stays_until_others_were_used_later(process_model: str) -> None:
    versions = [LoadableVersion("", process_model, "cpu", digest) for digest in "abc"[: KEPT_PROCESSES + 1]]
    with ThreadPoolExecutor(1) as task:  # as a step's task, whose thread ends
        first = task.submit(process_of, versions[0]).result()
    assert process_of(versions[0]) == first
    others = {process_of(version) for version in versions[1:]}
    assert len(others - {first}) == KEPT_PROCESSES
    assert first is not None
    assert not is_alive(first)
    assert process_of(versions[0]) not in {first, *others}


def test_a_version_that_crashes_is_loaded_again(process_model: str) -> None:
    version = LoadableVersion("", process_model, "cpu", "crashes")
    first = process_of(version)
    assert process_of(version, "bad") is None
    assert process_of(version) not in (None, first)


@pytest.mark.parametrize("digest", ["interrupted", ""])
def test_no_process_stays_after_an_interrupt_or_for_files_that_nobody_knows(process_model: str, digest: str) -> None:
    version = LoadableVersion("", process_model, "cpu", digest)

    def interrupted() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"content": [b""], "path": ["good"]})
        if digest:
            raise KeyboardInterrupt

    predicting = guarded_predictions(version, interrupted())
    process = int(next(predicting)["label"][0])
    if digest:
        with pytest.raises(KeyboardInterrupt):
            next(predicting)
    else:
        assert not list(predicting)
    assert not is_alive(process)


def test_the_files_of_a_version_are_deleted_with_its_process(
    process_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = LoadableVersion("", process_model, "cpu", "kept")
    assert process_of(kept)
    (first,) = tmp_path.iterdir()
    assert list(first.rglob("MLmodel"))
    assert process_of(kept, "bad") is None  # its process has crashed
    assert process_of(kept)
    (second,) = tmp_path.iterdir()
    assert second != first
    stop_kept_processes()
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_leaves_no_files(process_model: str, tmp_path: Path) -> None:
    program = f"""
        import pandas as pd
        from image_assets.models.isolated_scoring import LoadableVersion, guarded_predictions
        version = LoadableVersion("", {process_model!r}, "cpu", "kept")
        print(len(list(guarded_predictions(version, [pd.DataFrame({{"content": [b""], "path": ["good"]}})]))))
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", dedent(program)]
    assert subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True).stdout == b"1\n"
    assert not list(tmp_path.iterdir())
