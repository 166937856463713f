"""MLflow tracking: one MLflow run per Dagster run, which always ends with it."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, PrivateAttr

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
# The final status of an MLflow run, by the status of its Dagster run. In any other status, a Dagster run still runs.
ENDINGS = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}
SQLITE = "sqlite:///"


class RegistryUnavailable(RuntimeError):
    """The registry cannot be reached or returns an error."""


class PermissionRefused(RegistryUnavailable):
    """MLflow denies this account the permission for an operation."""


@contextmanager
def refusals_explained(address: str, what: str, permission: str) -> Iterator[None]:
    """Turns a denied request in the block into PermissionRefused, which names the account and what it lacks.

    Args:
        address: The address of MLflow, without a password.
        what: The operation, to follow "does not allow this account to".
        permission: The MLflow permission that the operation needs.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import read_mlflow_creds
    from requests import HTTPError

    try:
        yield
    except (MlflowException, HTTPError) as error:  # HTTPError: from MLflow's artifact server
        code = error.error_code if isinstance(error, MlflowException) else getattr(error.response, "status_code", None)
        name = read_mlflow_creds().username
        account = f"account {name}" if name else "this process, which has no account"
        if code in ("UNAUTHENTICATED", 401):
            raise PermissionRefused(
                f"MLflow at {address} rejects the login of {account}: check MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            ) from error
        if code in ("PERMISSION_DENIED", 403):
            raise PermissionRefused(
                f"MLflow at {address} does not allow {account} to {what}: it needs the permission {permission}. "
                "An MLflow administrator can grant it; see docs/governance.md"
            ) from error
        raise


class MlflowTracking(dg.ConfigurableResource):
    """MLflow tracking: one run per Dagster run, with a nested run per training.

    The first `run_for` creates the runs. At the end of the Dagster run, Dagster tears this resource down, which ends
    the MLflow runs with the same status. If the process is killed, the next Dagster run that uses this resource ends
    them. This requires Dagster's in-process executor, which sets up and tears down a resource once for all steps.
    """

    tracking_uri: str = Field(description="The address of the MLflow server, or `sqlite:///` and a file.")
    experiment: str = Field(default="image_assets", description="The MLflow experiment of all runs.")
    artifact_url: str | None = Field(
        default=None, description="The folder for artifacts, set when the experiment is created. Default: MLflow's."
    )
    ui_url: str = Field(default="http://127.0.0.1:5000", description="The address of the MLflow UI, for links.")
    dagster_url: str = Field(default="http://127.0.0.1:3000", description="The address of the Dagster UI, for links.")
    gallery_url: str = Field(default="http://127.0.0.1:4000", description="The address of the gallery, for links.")

    _parent_run_id: str | None = PrivateAttr(default=None)
    _dagster_run_id: str | None = PrivateAttr(default=None)

    @contextmanager
    def run_for(self, name: str) -> Iterator[str]:
        """Opens a nested MLflow run for the block and returns its id, with which other processes can log to it."""
        import mlflow

        if self._parent_run_id is None:
            with refusals_explained(self.tracking_uri, f"track runs in {self.experiment}", "EDIT on the experiment"):
                self._parent_run_id = self._start(self.get_resource_context())
        note = f"Trained by [Dagster run {self._dagster_run_id}]({self.dagster_url}/runs/{self._dagster_run_id})."
        tags = {"dagster_run_id": self._dagster_run_id, "dagster_asset": name, "mlflow.note.content": note}
        run = mlflow.start_run(run_name=name, nested=True, parent_run_id=self._parent_run_id, tags=tags)
        status = "FAILED"
        try:
            yield run.info.run_id
            status = "FINISHED"
        except INTERRUPTS:
            status = "KILLED"
            raise
        finally:
            mlflow.end_run(status)

    def run_url(self, mlflow_run_id: str) -> str:
        """The URL of a run's page in the MLflow UI."""
        from mlflow import MlflowClient

        experiment_id = MlflowClient(self.tracking_uri).get_run(mlflow_run_id).info.experiment_id
        return f"{self.ui_url}/#/experiments/{experiment_id}/runs/{mlflow_run_id}"

    def log_to(self, mlflow_run_id: str, folder: str, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
        """Logs metrics, and files to an artifact folder, without changing the run's status, even if it has ended."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        for name, value in metrics.items():
            client.log_metric(mlflow_run_id, name, value)
        with TemporaryDirectory() as written:
            for name, content in files.items():
                Path(written, name).write_bytes(content)
            client.log_artifacts(mlflow_run_id, written, folder)

    def read(self, mlflow_run_id: str, name: str) -> bytes:
        """The content of a run's artifact file."""
        from mlflow import MlflowClient

        with TemporaryDirectory() as folder:
            client = MlflowClient(self.tracking_uri)
            return Path(client.download_artifacts(mlflow_run_id, name, folder)).read_bytes()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Ends the MLflow runs of this Dagster run, with the same status."""
        if self._dagster_run_id is None or context.instance is None:
            return
        import mlflow

        status = self._outcome(context.instance, self._dagster_run_id, sys.exception())
        while mlflow.active_run():
            mlflow.end_run(status)
        # After an interrupt, MLflow may have created a run whose id this process never received.
        client = mlflow.MlflowClient(self.tracking_uri)
        for run in running(client, self.experiment):
            if run.data.tags.get("dagster_run_id") == self._dagster_run_id:
                client.set_terminated(run.info.run_id, status)

    def _outcome(self, instance: dg.DagsterInstance, dagster_run_id: str, raised: BaseException | None) -> str:
        """The status with which the Dagster run is about to end; it is not final while resources are torn down."""
        dagster_run = instance.get_run_by_id(dagster_run_id)
        events = instance.all_logs(dagster_run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        failures = [entry.dagster_event.step_failure_data for entry in events if entry.dagster_event]
        sources = [failure.error_source.name if failure.error_source else "" for failure in failures]
        return ending(
            canceled=dagster_run is not None
            and dagster_run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
            failures=sources,
            raised=raised,
        )

    def _start(self, context: dg.InitResourceContext) -> str:
        """Opens the Dagster run's MLflow run and passes it to dagster-mlflow, which makes it the active one."""
        import mlflow

        if context.run is None or context.instance is None:
            raise RuntimeError("mlflow_tracking needs a Dagster run: use it in an asset or op")
        create_store(self.tracking_uri)
        mlflow.set_tracking_uri(self.tracking_uri)
        client = mlflow.MlflowClient(self.tracking_uri)
        self._create_experiment(client)
        end_orphans(client, self.experiment, context.instance)
        with warnings.catch_warnings():
            # dagster-mlflow is in beta and uses deprecated names.
            warnings.simplefilter("ignore", dg.BetaWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            from dagster_mlflow.resources import MlFlow

            mlflow.set_experiment(self.experiment)
            # dagster-mlflow starts a run and tags it later; if killed in between, the run could never be attributed.
            # So we start it with the tag, by which dagster-mlflow finds and uses it.
            self._dagster_run_id = context.run.run_id
            run = mlflow.start_run(run_name=context.run.job_name, tags={"dagster_run_id": context.run.run_id})
            config = {"experiment_name": self.experiment, "mlflow_tracking_uri": self.tracking_uri}
            MlFlow(context.replace_config(config))
            return run.info.run_id

    def _create_experiment(self, client: "MlflowClient") -> None:
        """Creates the experiment if necessary, with the folder for its artifacts."""
        from mlflow.exceptions import MlflowException

        if client.get_experiment_by_name(self.experiment) is None:
            try:
                client.create_experiment(self.experiment, artifact_location=self.artifact_url)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process created it first
                    raise


def ending(*, canceled: bool, failures: Iterable[str], raised: BaseException | None) -> str:
    """FINISHED, FAILED or KILLED; `failures` are the names of Dagster's `ErrorSource` for each failed step."""
    sources = list(failures)
    if canceled or "INTERRUPT" in sources or isinstance(raised, INTERRUPTS):
        return "KILLED"
    return "FAILED" if sources or raised else "FINISHED"


def running(client: "MlflowClient", experiment: str) -> list["Run"]:
    """The experiment's runs with status RUNNING, including nested ones."""
    found = client.get_experiment_by_name(experiment)
    runs, token = [], None
    while found is not None:
        page = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'", page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            break
    return runs


def end_orphans(client: "MlflowClient", experiment: str, instance: dg.DagsterInstance) -> None:
    """Ends the MLflow runs of Dagster runs that have ended, with the same status."""
    for run in running(client, experiment):
        dagster_run_id = run.data.tags.get("dagster_run_id")
        dagster_run = instance.get_run_by_id(dagster_run_id) if dagster_run_id else None
        if dagster_run is not None and dagster_run.status in ENDINGS:
            client.set_terminated(run.info.run_id, ENDINGS[dagster_run.status])


def create_store(tracking_uri: str) -> None:
    """Creates a SQLite store and its folder if it does not exist; other stores are up to their servers.

    MLflow needs seconds to create the tables, and a second process that opens the store meanwhile would create them
    too, so that both may fail. So the store is created under a temporary name and renamed when it is complete.
    """
    from mlflow import MlflowClient

    store = Path(tracking_uri.removeprefix(SQLITE))
    if not tracking_uri.startswith(SQLITE) or store.exists():
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store.parent, prefix=f".{store.name}-") as folder:
        unnamed = Path(folder, store.name)
        MlflowClient(f"{SQLITE}{unnamed}").search_experiments()
        with suppress(FileExistsError):  # another process created it first
            store.hardlink_to(unnamed)
