"""Runs of the prediction tables, also as a program that kills itself at a given point.

`python -m tests.support.predictions_run HOME POINT`
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import WrittenFile
from resources.delta.table import Table
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.data_run import kill, kill_when_written
from tests.support.registered_versions import registered, saved_model
from tests.support.small_spark import small_spark

POINTS = ("before the commit", "after the commit", "in current_predictions")
# Predicts `ball`. It hangs at an image as long as the model's folder contains a file of that name.
CLASSIFIER = """
    import time
    from pathlib import Path

    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            for path in model_input["path"]:
                while (Path({folder!r}) / path.split("/")[-1]).exists():
                    time.sleep(0.1)
            rows = [("ball", 0.75, [0.75, 0.25]) for _ in model_input["path"]]
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Classifier())
"""


def logged_version(registry: ModelRegistry, folder: Path) -> ModelVersion:
    """Register a version with the tags that a training sets; the folder has its files under its number."""
    name = f"version{len(registry.versions()) + 1}"
    model = saved_model(CLASSIFIER.format(folder=str(folder)), folder, name)
    tags = {"framework": "torch", "labels": json.dumps(["ball", "cube"])}
    return registered(model, registry, tags, (folder / "artifacts").as_uri())


def home_instance(home: Path) -> dg.DagsterInstance:
    """Return the home's Dagster instance. It has no pools, which a killed run would leave claimed."""
    folder = home / "dagster"
    folder.mkdir(exist_ok=True)
    return dg.DagsterInstance.local_temp(str(folder), overrides={"telemetry": {"enabled": False}})


def run_predictions(
    delta_tables: DeltaTables, registry: ModelRegistry, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    """Materialize image_predictions and current_predictions."""
    resources = {
        "delta_tables": delta_tables,
        "model_registry": registry,
        "inference_device": InferenceDevice(choice="cpu"),
        "image_folder": ImageFolder(root=str(Path(instance.root_directory).parent / "landing")),
    }
    assets = [image_predictions, current_predictions]
    return dg.materialize(assets, instance=instance, resources=resources, raise_on_error=False)


class KilledTables(DeltaTables):
    """Tables that kill the process at the point."""

    point: str

    def append_files(self, table: Table, files: Sequence[WrittenFile], **more: Any) -> int:
        """Commit files, or kill the process right before or after the commit."""
        if self.point == "before the commit":
            kill()
        version = super().append_files(table, files, **more)
        if self.point == "after the commit":
            kill()
        return version

    def overwrite_rows(self, rows: pa.Table, table: Table, *, note: str = "") -> None:
        """Replace all rows, or kill the process meanwhile."""
        kill_when_written(Path(self.uri(table)))
        super().overwrite_rows(rows, table, note=note)

    def replace_rows(self, rows: pa.Table, table: Table, first_keys: pa.Array, *, note: str = "") -> None:
        """Replace some rows, or kill the process meanwhile."""
        kill_when_written(Path(self.uri(table)))
        super().replace_rows(rows, table, first_keys, note=note)


def main(home: str, point: str) -> None:
    """Run the predictions and kill the process at the point."""
    session = small_spark(f"{home}/spark")
    tables = KilledTables(pyspark=session, root=f"{home}/tables", point=point)
    with home_instance(Path(home)) as instance:
        run_predictions(tables, ModelRegistry(tracking_uri=f"sqlite:///{home}/mlflow.db"), instance)


if __name__ == "__main__":
    main(*sys.argv[1:])
