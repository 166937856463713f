"""A promotion during a pass, a signal during a step, and the run that resumes: every row is there once."""

import json
import signal
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
import pandas as pd
import pytest
from deltalake import DeltaTable

from image_assets.data.featured_images import featured_images
from image_assets.data.raw_images import raw_images
from image_assets.jobs.continuous import continuous_executor, files_to_ingest, images_to_predict
from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from resources.delta.spark_session import DeltaSpark
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import create_resources, read_settings
from tests.support.images import png, put
from tests.support.job_runs import active_run, execute
from tests.support.registered_versions import registered, saved_model

# Predicts its own label. Given `blocks.png`, it creates a file, then blocks until another file exists.
CLASSIFIER = """
    import time
    from pathlib import Path

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            if model_input["path"].str.endswith("blocks.png").any():
                Path({home!r}, "{label} is blocked").touch()
                while not Path({home!r}, "unblock {label}").exists():
                    time.sleep(0.05)
            rows = [({label!r}, 1.0, [1.0, 0.0])] * len(model_input)
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Classifier())
"""


def create_job(home: str) -> dg.JobDefinition:
    """From files to current predictions."""
    settings = read_settings({"IMAGE_ASSETS_HOME": home, "IMAGE_ASSETS_SPARK_MASTER": "local[2]"})
    executor = continuous_executor(files_to_ingest, images_to_predict)
    return dg.Definitions(
        assets=[raw_images, featured_images, image_predictions, current_predictions],
        jobs=[dg.define_asset_job("ingest_images", executor_def=executor)],
        resources=create_resources(settings),
    ).resolve_job_def("ingest_images")


def serving_versions(instance: dg.DagsterInstance, asset: str) -> list[str]:
    """The production model's version in each materialization of the asset, in order."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=100, ascending=True).records
    materializations = [record.asset_materialization for record in records]
    return [str(each.metadata["serving_version"].value) for each in materializations if each]


def rows_by_commit(table: Path) -> list[pd.DataFrame]:
    """The rows that each commit added."""
    before: set[str] = set()
    commits = []
    for version in range(DeltaTable(str(table)).version() + 1):
        files = set(map(unquote, DeltaTable(str(table), version=version).file_uris()))
        if new := sorted(files - before):
            commits.append(pd.read_parquet(new, columns=["path", "label", "model_version"]))
        before |= files
    return commits


def current_versions(home: Path) -> Counter[int]:
    """The number of current predictions of each version."""
    files = map(unquote, DeltaTable(str(home / "tables" / "current_predictions")).file_uris())
    return Counter(pd.read_parquet([*files], columns=["model_version"])["model_version"])


@pytest.mark.spark
def test_no_pass_mixes_versions_and_a_stopped_run_is_resumed_without_lost_or_duplicated_rows(
    home: Path, registry: ModelRegistry, delta_spark: DeltaSpark
) -> None:
    for label in ("first", "second"):
        model = saved_model(CLASSIFIER.format(home=str(home), label=label), home, label)
        tags = {"framework": "torch", "labels": json.dumps(["first", "second"])}
        registered(model, registry, tags, (home / "artifacts").as_uri())
    registry.promote(1, "Production")
    files = [put(home / "landing", name, png(len(name))) for name in ("ball/1.png", "ball/blocks.png")]

    with active_run(create_job, home, "1 second") as run:
        run.wait_for((home / "first is blocked").exists, "a prediction of version 1 in the first pass")
        registry.promote(2, "Production")
        files.append(put(home / "landing", "cube/landed.png", png(3)))
        (home / "unblock first").touch()
        run.wait_for(run.passes, "the end of the first pass")
        run.wait_for((home / "second is blocked").exists, "a prediction of version 2 in the second pass")
        assert serving_versions(run.instance, "image_predictions") == ["1"]
        assert serving_versions(run.instance, "current_predictions") == ["1"]
        assert run.running_steps() == {"image_predictions"}
        assert run.stop(signal.SIGTERM) is dg.DagsterRunStatus.CANCELED
        assert run.running_steps() == set()
        assert current_versions(home) == {1: 2}, "the interrupted pass has replaced no prediction"

        (home / "unblock second").touch()
        execute(create_job, home, run.instance)
        assert run.instance.get_runs(limit=1)[0].status is dg.DagsterRunStatus.SUCCESS
    assert current_versions(home) == {2: 3}

    paths = Counter(f"file:{file}" for file in files)
    for table in ("image_files", "raw_images", "featured_images", "current_predictions"):
        assert Counter(DeltaTable(str(home / "tables" / table)).to_pandas(columns=["path"])["path"]) == paths, table
    commits = rows_by_commit(home / "tables" / "image_predictions")
    assert all(commit["model_version"].nunique() == 1 for commit in commits)
    rows = pd.concat(commits)
    assert set(zip(rows["model_version"], rows["label"], strict=True)) == {(1, "first"), (2, "second")}
    assert Counter(rows["path"][rows["model_version"] == 1]) == Counter(f"file:{file}" for file in files[:2])
    assert Counter(rows["path"][rows["model_version"] == 2]) == paths
