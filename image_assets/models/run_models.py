"""Models logged to an MLflow run that is open elsewhere."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Untried:
    """A flavor as `Model.log` takes it that is told to try no input example: its `save_model` knows nothing of that."""

    flavor: ModuleType

    # Any: what a flavor wants to be told differs by flavor.
    def save_model(self, *, validate_serving_input: bool, **saved: Any) -> None:
        """Save a model in the flavor."""
        self.flavor.save_model(**saved)


def log_to_run(name: str, flavor: ModuleType, *, tracking_uri: str, mlflow_run_id: str, **saved: Any) -> str:
    """Log a model to the run, in the flavor (a module of MLflow's such as `mlflow.pytorch`); the model's URI.

    The flavors' own `log_model` would start the run again in this process, and end it when the process ends; and
    without an active run a model would land in the default experiment, not in the run's. To try an input example,
    MLflow would load the model, and its framework, into this process.
    """
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    experiment_id = client.get_run(mlflow_run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name=name, source_run_id=mlflow_run_id)
    logged = Model.log(
        artifact_path=None,
        name=name,
        flavor=Untried(flavor),
        run_id=mlflow_run_id,
        model_id=model.model_id,
        validate_serving_input=False,
        **saved,
    )
    return logged.model_uri
