"""dagster-mlflow's tracking: one MLflow run per Dagster run, always ended."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, PrivateAttr

from resources.mlflow.registry_errors import refusals_explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
# How an MLflow run ends whose Dagster run is over. Every other state of a Dagster run means that it goes on.
ENDINGS = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}
SQLITE = "sqlite:///"


class MlflowTracking(dg.ConfigurableResource):
    """MLflow's tracking: one run per Dagster run, and a nested run per training in it.

    Nothing is created before the first `run_for`. When the Dagster run is over, Dagster tears this resource down,
    however it ended and whoever launched it, and whatever is still running in MLflow under it ends as it did. A process
    that was killed outright ends nothing: the next Dagster run that tracks does it, once Dagster knows of the death.
    This asks for Dagster's in-process executor, which sets a resource up and tears it down once for all steps.
    """

    tracking_uri: str = Field(description="Where MLflow's tracking API answers, or `sqlite:///` and a file.")
    experiment: str = Field(default="image_assets", description="The MLflow experiment that the runs belong to.")
    artifact_url: str | None = Field(
        default=None, description="The folder for artifacts, given to the experiment when it is created; else MLflow's."
    )
    ui_url: str = Field(default="http://127.0.0.1:5000", description="Where people see MLflow's runs.")
    dagster_url: str = Field(default="http://127.0.0.1:3000", description="Where people see Dagster's runs.")

    _parent_run_id: str | None = PrivateAttr(default=None)
    _dagster_run_id: str | None = PrivateAttr(default=None)

    @contextmanager
    def run_for(self, name: str) -> Iterator[str]:
        """A nested MLflow run, open for the block; its id is all that a worker elsewhere needs to log to it."""
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
        """The page of a run, for people."""
        from mlflow import MlflowClient

        experiment_id = MlflowClient(self.tracking_uri).get_run(mlflow_run_id).info.experiment_id
        return f"{self.ui_url}/#/experiments/{experiment_id}/runs/{mlflow_run_id}"

    def log_to(self, mlflow_run_id: str, folder: str, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
        """Log figures, and files in a folder, to a run that may have ended: its state stays as it is."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        for name, value in metrics.items():
            client.log_metric(mlflow_run_id, name, value)
        with TemporaryDirectory() as written:
            for name, content in files.items():
                Path(written, name).write_bytes(content)
            client.log_artifacts(mlflow_run_id, written, folder)

    def read(self, mlflow_run_id: str, name: str) -> bytes:
        """A file that was logged to a run."""
        from mlflow import MlflowClient

        with TemporaryDirectory() as folder:
            client = MlflowClient(self.tracking_uri)
            return Path(client.download_artifacts(mlflow_run_id, name, folder)).read_bytes()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """End what this Dagster run opened in MLflow, in the way in which it ended itself."""
        if self._dagster_run_id is None or context.instance is None:
            return
        import mlflow

        status = self._outcome(context.instance, self._dagster_run_id, sys.exception())
        while mlflow.active_run():
            mlflow.end_run(status)
        # An interrupt may hit between MLflow's commit of a new run and the moment in which this process learns its id.
        client = mlflow.MlflowClient(self.tracking_uri)
        for run in running(client, self.experiment):
            if run.data.tags.get("dagster_run_id") == self._dagster_run_id:
                client.set_terminated(run.info.run_id, status)

    def _outcome(self, instance: dg.DagsterInstance, dagster_run_id: str, raised: BaseException | None) -> str:
        """How the Dagster run is about to end: it has no final state yet while its resources are torn down."""
        dagster_run = instance.get_run_by_id(dagster_run_id)
        events = instance.all_logs(dagster_run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        failures = [entry.dagster_event.step_failure_data for entry in events if entry.dagster_event]
        sources = [failure.error_source.name if failure.error_source else "" for failure in failures]
        return ending(
            cancelled=dagster_run is not None
            and dagster_run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
            failures=sources,
            raised=raised,
        )

    def _start(self, context: dg.InitResourceContext) -> str:
        """Open the Dagster run's MLflow run and hand it to dagster-mlflow, which makes it the active one."""
        import mlflow

        if context.run is None or context.instance is None:
            raise RuntimeError("mlflow_tracking has no Dagster run to track: use it from an asset or op of a run")
        create_store(self.tracking_uri)
        mlflow.set_tracking_uri(self.tracking_uri)
        client = mlflow.MlflowClient(self.tracking_uri)
        self._create_experiment(client)
        end_orphans(client, self.experiment, context.instance)
        with warnings.catch_warnings():
            # dagster-mlflow says at its import and use that it is in beta, and uses names that Dagster has replaced.
            warnings.simplefilter("ignore", dg.BetaWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            from dagster_mlflow.resources import MlFlow

            mlflow.set_experiment(self.experiment)
            # dagster-mlflow starts a run first and tags it later; a kill between the two would leave a run that
            # nobody can trace back. It finds this one by its tag, and takes it.
            self._dagster_run_id = context.run.run_id
            run = mlflow.start_run(run_name=context.run.job_name, tags={"dagster_run_id": context.run.run_id})
            config = {"experiment_name": self.experiment, "mlflow_tracking_uri": self.tracking_uri}
            MlFlow(context.replace_config(config))
            return run.info.run_id

    def _create_experiment(self, client: "MlflowClient") -> None:
        """The experiment, with its artifacts in the given folder or MLflow's own, unless it is there already."""
        from mlflow.exceptions import MlflowException

        if client.get_experiment_by_name(self.experiment) is None:
            try:
                client.create_experiment(self.experiment, artifact_location=self.artifact_url)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                    raise


def ending(*, cancelled: bool, failures: Iterable[str], raised: BaseException | None) -> str:
    """FINISHED, FAILED or KILLED; `failures` are the error sources of the failed steps, as Dagster names them."""
    sources = list(failures)
    if cancelled or "INTERRUPT" in sources or isinstance(raised, INTERRUPTS):
        return "KILLED"
    return "FAILED" if sources or raised else "FINISHED"


def running(client: "MlflowClient", experiment: str) -> list["Run"]:
    """The experiment's runs in the state RUNNING, nested ones too."""
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
    """End the MLflow runs of those Dagster runs that are over, as they ended."""
    for run in running(client, experiment):
        dagster_run_id = run.data.tags.get("dagster_run_id")
        dagster_run = instance.get_run_by_id(dagster_run_id) if dagster_run_id else None
        if dagster_run is not None and dagster_run.status in ENDINGS:
            client.set_terminated(run.info.run_id, ENDINGS[dagster_run.status])


def create_store(tracking_uri: str) -> None:
    """Create a SQLite store that is not there yet, with its folder; other stores are left to their servers.

    Its tables take MLflow seconds to make, and a second process that looks in meanwhile starts to make them as well,
    which may fail in both. So the store is made under another name and gets its own when it is whole.
    """
    from mlflow import MlflowClient

    store = Path(tracking_uri.removeprefix(SQLITE))
    if not tracking_uri.startswith(SQLITE) or store.exists():
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store.parent, prefix=f".{store.name}-") as folder:
        unnamed = Path(folder, store.name)
        MlflowClient(f"{SQLITE}{unnamed}").search_experiments()
        with suppress(FileExistsError):  # another process was faster: its store may hold runs already
            store.hardlink_to(unnamed)
