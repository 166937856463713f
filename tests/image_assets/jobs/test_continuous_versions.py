"""A version that is promoted while a continuous run goes on serves from the next pass on."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
import pandas as pd
import pytest
from deltalake import DeltaTable

from image_assets.data.featured_images import featured_images
from image_assets.data.raw_images import raw_images
from image_assets.jobs.continuous import continuous_executor, either, news_of_files, news_to_predict
from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import create_resources, read_settings
from tests.support.images import png, put
from tests.support.registered_versions import registered, saved_model
from tests.support.runs_apart import Going, apart, to_instance

# Answers its own label; on an image that is called so, it says that it is asked and waits for leave to go on.
PATIENT = """
    import time
    from pathlib import Path

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Patient(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            if model_input["path"].str.endswith("waited for.png").any():
                Path({asked!r}).touch()
                while not Path({leave!r}).exists():
                    time.sleep(0.05)
            rows = [({label!r}, 1.0, [1.0, 0.0])] * len(model_input)
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Patient())
"""


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    home.mkdir(exist_ok=True)
    with to_instance(home) as instance:
        yield instance


def to_predictions_job() -> dg.JobDefinition:
    """From files to current predictions, on the home that the environment names."""
    executor = continuous_executor(either(news_of_files, news_to_predict))
    return dg.Definitions(
        assets=[raw_images, featured_images, image_predictions, current_predictions],
        jobs=[dg.define_asset_job("ingest_images", executor_def=executor)],
        resources=create_resources(read_settings()),
    ).resolve_job_def("ingest_images")


def served(instance: dg.DagsterInstance, asset: str) -> list[str]:
    """The version that served in each materialization of the asset, pass by pass."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=100, ascending=True).records
    found = [record.asset_materialization for record in records]
    return [str(one.metadata["serving_version"].value) for one in found if one]


def rows_by_commit(table: str) -> list[pd.DataFrame]:
    """What each commit added."""
    before: set[str] = set()
    commits = []
    for version in range(DeltaTable(table).version() + 1):
        files = set(map(unquote, DeltaTable(table, version=version).file_uris()))
        if new := sorted(files - before):
            commits.append(pd.read_parquet(new, columns=["path", "image_id", "label", "model_version"]))
        before |= files
    return commits


def current(home: Path) -> Counter[int]:
    """How many current predictions are of which version."""
    files = [*map(unquote, DeltaTable(str(home / "tables" / "current_predictions")).file_uris())]
    return Counter(pd.read_parquet(files, columns=["model_version"])["model_version"])


@pytest.mark.spark
def test_no_pass_mixes_versions_and_each_version_answers_each_image_once(
    home: Path, registry: ModelRegistry, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_ASSETS_HOME", str(home))
    monkeypatch.setenv("IMAGE_ASSETS_SPARK_MASTER", "local[2]")
    asked, leave = home / "asked", home / "leave"
    for label in ("first", "second"):
        model = saved_model(PATIENT.format(asked=str(asked), leave=str(leave), label=label), home, label)
        tags = {"framework": "torch", "labels": json.dumps(["first", "second"])}
        registered(model, registry, tags, (home / "artifacts").as_uri())
    registry.promote(1, "Production")
    files = [put(home / "landing", f"ball/{number}.png", png(number)) for number in range(4)]

    with apart(__name__, "to_predictions_job()", home, "1 second") as process:
        going = Going(instance, process)
        going.wait_for(going.passes, "a first pass")
        files.append(put(home / "landing", "ball/waited for.png", png(4)))
        going.wait_for(asked.exists, "the first version is asked")
        registry.promote(2, "Production")
        files.append(put(home / "landing", "ball/5.png", png(5)))
        leave.touch()
        going.wait_for(lambda: current(home) == Counter({2: 6}), "the second version's answers to all images")
        going.wait_for(lambda: len(served(instance, "current_predictions")) > 2, "the third pass in Dagster's records")

    passes = served(instance, "current_predictions")
    assert served(instance, "image_predictions")[: len(passes)] == passes
    assert passes[:3] == ["1", "1", "2"]
    commits = rows_by_commit(str(home / "tables" / "image_predictions"))
    assert all(commit["model_version"].nunique() == 1 for commit in commits)
    rows = pd.concat(commits)
    assert set(zip(rows["model_version"], rows["label"], strict=True)) == {(1, "first"), (2, "second")}
    assert Counter(rows["path"][rows["model_version"] == 1]) == Counter(f"file:{file}" for file in files[:5])
    assert Counter(rows["path"][rows["model_version"] == 2]) == Counter(f"file:{file}" for file in files)
