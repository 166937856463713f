"""A run of the predictions, with versions of a few lines of code."""

import json
from pathlib import Path

import dagster as dg

from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from resources.delta_tables import DeltaTables
from resources.inference_device import InferenceDevice
from resources.model_files import FILES_DIGEST
from resources.model_registry import ModelRegistry, ModelVersion
from tests.registered_versions import registered, saved_model

# Says `ball`; where a file of this name is beside the model, it hangs at that image for as long as the file is there.
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
    """A version whose tags say what was logged; its files are below the folder, named by its number."""
    name = f"version{len(registry.versions()) + 1}"
    model = saved_model(CLASSIFIER.format(folder=str(folder)), folder, name)
    tags = {"framework": "torch", "labels": json.dumps(["ball", "cube"])}
    tags[FILES_DIGEST] = registry.files_digest(model.as_uri())
    return registered(model, registry, tags, (folder / "artifacts").as_uri())


def kept_instance(home: Path) -> dg.DagsterInstance:
    """The home's Dagster instance, which a killed run leaves no pool of claimed."""
    folder = home / "dagster"
    folder.mkdir(exist_ok=True)
    return dg.DagsterInstance.local_temp(str(folder), overrides={"telemetry": {"enabled": False}})


def run_predictions(
    delta_tables: DeltaTables, registry: ModelRegistry, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    """A run of image_predictions and current_predictions."""
    resources = {
        "delta_tables": delta_tables,
        "model_registry": registry,
        "inference_device": InferenceDevice(choice="cpu"),
    }
    assets = [image_predictions, current_predictions]
    return dg.materialize(assets, instance=instance, resources=resources, raise_on_error=False)
