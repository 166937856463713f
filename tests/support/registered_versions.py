"""Model versions made of a few lines of code."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import mlflow
from mlflow import MlflowClient

from resources.mlflow.model_registry import ModelRegistry, ModelVersion


def saved_model(code: str, folder: Path, name: str) -> Path:
    """A model of this code, which calls `set_model`, in a folder of the name."""
    file = folder / f"{name}.py"
    file.write_text(dedent(code))
    mlflow.pyfunc.save_model(folder / name, python_model=str(file), pip_requirements=["mlflow"])
    return folder / name


def registered(model: Path, registry: ModelRegistry, tags: Mapping[str, str], artifacts: str) -> ModelVersion:
    """A version of a saved model, with a run of its own that has ended and keeps its artifacts there."""
    client = MlflowClient(registry.tracking_uri)
    run = client.create_run(client.create_experiment(model.name, artifacts))
    client.set_terminated(run.info.run_id)
    return registry.register(model.as_uri(), run.info.run_id, tags)
