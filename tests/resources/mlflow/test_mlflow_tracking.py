"""MLflow runs end with the Dagster run that opened them, however it ends."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import dagster as dg
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from resources.mlflow.mlflow_tracking import MlflowTracking, ending


@pytest.fixture
def tracking(tmp_path: Path, empty_store: Path) -> MlflowTracking:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return MlflowTracking(
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_url=(tmp_path / "artifacts").as_uri()
    )


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


@dg.asset
def torch_model(mlflow_tracking: MlflowTracking) -> None:
    with mlflow_tracking.run_for("torch_model"):
        pass


@dg.asset
def broken_model(mlflow_tracking: MlflowTracking) -> None:
    with mlflow_tracking.run_for("broken_model"):
        raise ValueError("no images")


@dg.asset(deps=[torch_model])
def broken_afterwards() -> None:
    raise ValueError("no disk")


@dg.asset
def interrupted_model(mlflow_tracking: MlflowTracking) -> None:
    with mlflow_tracking.run_for("interrupted_model"):
        raise KeyboardInterrupt


@dg.asset
def untracked(mlflow_tracking: MlflowTracking) -> None:
    pass


def statuses(tracking: MlflowTracking) -> dict[str, str]:
    """The status of each run by its name."""
    return {run.info.run_name or "": run.info.status for run in runs(tracking)}


def runs(tracking: MlflowTracking) -> list[Run]:
    client = MlflowClient(tracking.tracking_uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def job_of(tracking: MlflowTracking, name: str) -> dg.JobDefinition:
    return dg.Definitions(
        assets=[torch_model, broken_model, broken_afterwards, interrupted_model, untracked],
        jobs=[dg.define_asset_job("train_models")],
        resources={"mlflow_tracking": tracking},
    ).resolve_job_def(name)


def materialize(
    asset: dg.AssetsDefinition, tracking: MlflowTracking, instance: dg.DagsterInstance, *, job: str = "train_models"
) -> dg.ExecuteInProcessResult:
    return job_of(tracking, job).execute_in_process(
        instance=instance, asset_selection=[asset.key], raise_on_error=False
    )


@pytest.mark.parametrize("job", ["train_models", "__ASSET_JOB"])  # a job of ours, and the job behind "Materialize"
def test_a_training_is_a_nested_run_that_finishes(
    tracking: MlflowTracking, instance: dg.DagsterInstance, job: str
) -> None:
    result = materialize(torch_model, tracking, instance, job=job)
    assert result.success
    assert statuses(tracking) == {"torch_model": "FINISHED", job: "FINISHED"}
    nested, parent = sorted(runs(tracking), key=lambda run: run.info.run_name == job)
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nested.data.tags["dagster_asset"] == "torch_model"
    assert {run.data.tags["dagster_run_id"] for run in (nested, parent)} == {result.run_id}


def test_a_failed_step_fails_its_run_and_the_parent(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    assert not materialize(broken_model, tracking, instance).success
    assert statuses(tracking) == {"broken_model": "FAILED", "train_models": "FAILED"}


def test_a_failure_elsewhere_fails_the_parent_alone(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    result = dg.materialize(
        [torch_model, broken_afterwards],
        resources={"mlflow_tracking": tracking},
        instance=instance,
        raise_on_error=False,
    )
    assert not result.success
    assert sorted(statuses(tracking).values()) == ["FAILED", "FINISHED"]
    assert statuses(tracking)["torch_model"] == "FINISHED"


def test_an_interrupt_kills_both(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    materialize(interrupted_model, tracking, instance)
    assert statuses(tracking) == {"interrupted_model": "KILLED", "train_models": "KILLED"}


def test_a_retried_step_has_a_run_per_attempt_and_a_finished_parent(
    tracking: MlflowTracking, instance: dg.DagsterInstance
) -> None:
    @dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
    def train(context: dg.OpExecutionContext, mlflow_tracking: MlflowTracking) -> None:
        with mlflow_tracking.run_for(f"attempt {context.retry_number}"):
            if context.retry_number == 0:
                raise ValueError("a lost worker")

    @dg.job(resource_defs={"mlflow_tracking": tracking})
    def train_models() -> None:
        train()

    assert train_models.execute_in_process(instance=instance).success
    assert statuses(tracking) == {"attempt 0": "FAILED", "attempt 1": "FINISHED", "train_models": "FINISHED"}


def test_a_dagster_run_without_tracking_creates_nothing(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    tracking = MlflowTracking(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_url=tmp_path.as_uri())
    assert materialize(untracked, tracking, instance).success
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_is_created_with_its_folder_and_artifacts_go_to_the_given_folder(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    store = tmp_path / "new" / "folder" / "mlflow.db"
    tracking = MlflowTracking(tracking_uri=f"sqlite:///{store}", artifact_url=(tmp_path / "artifacts").as_uri())
    assert materialize(torch_model, tracking, instance).success
    assert [path.name for path in store.parent.iterdir()] == ["mlflow.db"]
    artifacts = (tmp_path / "artifacts").as_uri()
    assert all((run.info.artifact_uri or "").startswith(artifacts) for run in runs(tracking))


def test_a_worker_can_log_with_the_id_alone(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    @dg.op
    def train(mlflow_tracking: MlflowTracking) -> None:
        with mlflow_tracking.run_for("torch_model") as mlflow_run_id:
            MlflowClient(mlflow_tracking.tracking_uri).log_metric(mlflow_run_id, "loss", 0.5)

    @dg.job(resource_defs={"mlflow_tracking": tracking})
    def train_models() -> None:
        train()

    assert train_models.execute_in_process(instance=instance).success
    assert {run.info.run_name: run.data.metrics for run in runs(tracking)}["torch_model"] == {"loss": 0.5}


def test_an_ended_run_accepts_metrics_and_files_and_stays_ended(
    tracking: MlflowTracking, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    materialize(torch_model, tracking, instance)
    ended = next(run for run in runs(tracking) if run.info.run_name == "torch_model")
    for accuracy in (0.5, 0.75):
        files = {"curve.png": f"picture of {accuracy}".encode(), "text.txt": b"\x00"}
        tracking.log_to(ended.info.run_id, "evaluation", {"test_accuracy": accuracy}, files)
    client = MlflowClient(tracking.tracking_uri)
    found = client.get_run(ended.info.run_id)
    assert (found.data.metrics, found.info.status) == ({"test_accuracy": 0.75}, "FINISHED")
    assert found.info.end_time == ended.info.end_time
    folder = Path(client.download_artifacts(ended.info.run_id, "evaluation", str(tmp_path)))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "curve.png": b"picture of 0.75",
        "text.txt": b"\x00",
    }


def test_runs_left_by_a_dead_process_end_when_the_next_one_tracks(
    tracking: MlflowTracking, instance: dg.DagsterInstance
) -> None:
    materialize(torch_model, tracking, instance)
    client = MlflowClient(tracking.tracking_uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment
    dead = materialize(broken_model, tracking, instance).run_id
    canceled = materialize(untracked, tracking, instance).run_id
    canceled_run = instance.get_run_by_id(canceled)
    assert canceled_run
    instance.report_run_canceled(canceled_run)
    alive = instance.create_run_for_job(job_of(tracking, "train_models")).run_id
    left = {dead: "FAILED", canceled: "KILLED", alive: "RUNNING", "of another instance": "RUNNING"}
    for dagster_run_id in left:
        client.create_run(experiment.experiment_id, run_name=dagster_run_id, tags={"dagster_run_id": dagster_run_id})
    materialize(torch_model, tracking, instance)
    assert {name: status for name, status in statuses(tracking).items() if name in left} == left


def test_a_terminated_process_ends_its_runs_as_killed(tracking: MlflowTracking, tmp_path: Path) -> None:
    script = tmp_path / "terminated.py"
    script.write_text(
        dedent(f"""
        import time
        from pathlib import Path
        import dagster as dg
        from resources.mlflow.mlflow_tracking import MlflowTracking

        @dg.op
        def train(mlflow_tracking: MlflowTracking) -> None:
            with mlflow_tracking.run_for("torch_model"):
                Path({str(tmp_path / "training")!r}).touch()
                time.sleep(60)

        @dg.job(executor_def=dg.in_process_executor, resource_defs={{"mlflow_tracking": MlflowTracking(
            tracking_uri={tracking.tracking_uri!r}, artifact_url={tracking.artifact_url!r})}})
        def train_models() -> None:
            train()

        if __name__ == "__main__":
            with dg.DagsterInstance.local_temp() as instance:
                dg.execute_job(dg.reconstructable(train_models), instance=instance)
        """)
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "training").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert statuses(tracking) == {"torch_model": "KILLED", "train_models": "KILLED"}


@pytest.mark.parametrize(
    ("canceled", "failures", "raised", "status"),
    [
        (False, [], None, "FINISHED"),
        (False, ["USER_CODE_ERROR"], None, "FAILED"),
        (False, [], RuntimeError("between steps"), "FAILED"),
        (False, ["USER_CODE_ERROR", "INTERRUPT"], None, "KILLED"),
        (False, [], dg.DagsterExecutionInterruptedError(), "KILLED"),
        (True, ["USER_CODE_ERROR"], None, "KILLED"),  # the step fails because it was canceled
    ],
)
def test_the_status_matches_what_happened(
    canceled: bool, failures: list[str], raised: BaseException | None, status: str
) -> None:
    assert ending(canceled=canceled, failures=failures, raised=raised) == status
