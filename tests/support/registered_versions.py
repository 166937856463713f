"""Model versions made of a few lines of code."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema

from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion

# The probability of its first label is the share of red pixels. As in earlier releases, it takes DataFrames of file
# contents only. It fails on white images.
REDNESS = """
    from io import BytesIO

    import numpy as np
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel
    from PIL import Image


    class Redness(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            rows = []
            for content in model_input["content"]:
                pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)
                if (pixels == 255).all():
                    raise ValueError("white")
                red = float((pixels[:, :, 0] > pixels[:, :, 1:].max(axis=2) + 100).mean())
                rows.append(({labels}[red < 0.5], max(red, 1 - red), [red, 1 - red]))
            return pd.DataFrame(rows, columns=["label", "probability", "probabilities"], index=model_input.index)


    set_model(Redness())
"""


def saved_model(code: str, folder: Path, name: str, *, columns: Sequence[str] = ()) -> Path:
    """A model of this code, which calls `set_model`, in a folder of the name; its signature has these columns."""
    file = folder / f"{name}.py"
    file.write_text(dedent(code))
    signature = {}
    if columns:
        signature["signature"] = ModelSignature(outputs=Schema([ColSpec("string", column) for column in columns]))
    mlflow.pyfunc.save_model(folder / name, python_model=str(file), pip_requirements=["mlflow"], **signature)
    return folder / name


def registered(model: Path, registry: ModelRegistry, tags: Mapping[str, str | None], artifacts: str) -> ModelVersion:
    """A version of a saved model, with a run of its own that has ended and keeps its artifacts there.

    It has the digest of its files, as after a training. A tag of None is left out.
    """
    client = MlflowClient(registry.tracking_uri)
    run = client.create_run(client.create_experiment(model.name, artifacts))
    client.set_terminated(run.info.run_id)
    all_tags = {FILES_DIGEST: registry.files_digest(model.as_uri()), **tags}
    present = {tag: value for tag, value in all_tags.items() if value is not None}
    return registry.register(model.as_uri(), run.info.run_id, present)


def with_three_versions(folder: Path, empty_store: Path) -> ModelRegistry:
    """A registry with three versions without files, none of which serves, in the folder."""
    shutil.copy(empty_store, folder / "mlflow.db")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    for number in range(3):
        client.create_model_version(registry.name, (folder / str(number)).as_uri())
    return registry


def stages(registry: ModelRegistry) -> dict[int, str]:
    """The stage of each version."""
    return {version.version: version.stage for version in registry.versions()}


class Pickled(PythonModel):
    """A model that is stored as a pickle, which creates a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None) -> Any:
        """Nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def saved_pickle(folder: Path, name: str) -> tuple[Path, Path]:
    """A pickled model in a folder of the name, and the file that loading it creates."""
    created = folder / f"{name} was loaded"
    mlflow.pyfunc.save_model(folder / name, python_model=Pickled(created), pip_requirements=["mlflow"])
    return folder / name, created
