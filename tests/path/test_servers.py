"""Dagster as several processes that share a PostgreSQL, beside an MLflow server that has one too."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import mlflow
import psycopg2
import pytest
from dagster import DagsterRunStatus
from dagster_graphql import DagsterGraphQLClient

from image_assets.schemas import STAGE_HISTORY
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from resources.settings import read_settings
from scripts.cluster import HOST, free_port
from scripts.dev import Service, is_up, start, stop
from scripts.home import prepare
from tests.support.postgres_server import PASSWORD, postgres_server, programs
from tests.support.tables import tables_at
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 240
CLASSIFIER = """
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Classifier(PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input


    set_model(Classifier())
"""

pytestmark = [
    pytest.mark.path,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed: `apt-get install postgresql`"),
]


@dataclass(frozen=True)
class Servers:
    """Where they answer."""

    mlflow: str
    web_port: int
    dagster_database: str


@contextmanager
def servers(home: Path) -> Iterator[Servers]:
    """PostgreSQL, MLflow, and Dagster's code server, webserver and daemon, each a process of its own."""
    mlflow_port, code_port, web_port = (str(free_port()) for _ in range(3))
    mlflow_url, web = f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{web_port}"
    with postgres_server("dagster", "mlflow") as databases, ExitStack() as running:
        settings = {
            "IMAGE_ASSETS_HOME": str(home),
            "IMAGE_ASSETS_DAGSTER_DATABASE": databases["dagster"],
            "IMAGE_ASSETS_SPARK_MASTER": "local[1]",
            "MLFLOW_TRACKING_URI": mlflow_url,
        }
        prepare(read_settings(settings))
        store = {"MLFLOW_BACKEND_STORE_URI": databases["mlflow"], "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {**os.environ, **settings, **store, "DAGSTER_HOME": str(home / "dagster")}
        code_server = ["--grpc-host", HOST, "--grpc-port", code_port]
        commands = [
            ["mlflow", "server", "--host", HOST, "--port", mlflow_port, "--workers", "1"],
            ["dagster", "code-server", "start", "-m", "definitions", "-h", HOST, "-p", code_port],
            ["python", "-m", "scripts.webserver", "-h", HOST, "-p", web_port, *code_server],
            ["dagster-daemon", "run", *code_server],
        ]
        processes = [start(Service(name, [str(BIN / name), *more]), environment) for name, *more in commands]
        running.callback(stop, processes)
        wait_until(
            lambda: is_up(f"{mlflow_url}/health") and is_up(f"{web}/server_info"),
            PATIENCE_SECONDS,
            "answers of the servers",
        )
        yield Servers(mlflow_url, int(web_port), databases["dagster"])


def logged_version(registry: ModelRegistry, folder: Path) -> ModelVersion:
    """A version of a few lines of code, logged to the server and registered there."""
    mlflow.set_tracking_uri(registry.tracking_uri)
    (folder / "classifier.py").write_text(dedent(CLASSIFIER))
    experiment = mlflow.create_experiment("classifier", (folder / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        logged = mlflow.pyfunc.log_model(
            name="classifier", python_model=str(folder / "classifier.py"), pip_requirements=["mlflow"]
        )
    return registry.register(logged.model_uri, run.info.run_id, {"framework": "torch"})


def status_of_promotion(version: ModelVersion, by: DagsterGraphQLClient) -> tuple[str, DagsterRunStatus]:
    """How the run ended that moves a version to the stage Archived."""
    config = {"version": version.version, "stage": "Archived", "person": "Ada"}
    run_id = by.submit_job_execution("promote_model", run_config={"ops": {"promote": {"config": config}}})
    ended = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
    wait_until(lambda: by.get_run_status(run_id) in ended, PATIENCE_SECONDS, "the end of the run")
    return run_id, by.get_run_status(run_id)


def test_a_run_goes_through_servers_that_keep_everything_in_postgres(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    with servers(home) as there:
        registry = ModelRegistry(tracking_uri=there.mlflow)
        version = logged_version(registry, tmp_path)
        own = {"Origin": f"http://{HOST}:{there.web_port}"}
        client = DagsterGraphQLClient(HOST, port_number=there.web_port, headers=own)
        run_id, status = status_of_promotion(version, client)
        assert status == DagsterRunStatus.SUCCESS
        assert registry.version(version.version).stage == "Archived"
        database = there.dagster_database.replace("+psycopg2", "")
        with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT run_id, status FROM runs")
            assert cursor.fetchall() == [(run_id, "SUCCESS")]
    (change,) = tables_at(home / "tables").read(STAGE_HISTORY, ["to_stage", "person"]).to_pylist()
    assert change == {"to_stage": "Archived", "person": "Ada"}
    assert not list(home.rglob("*.db"))
    written = "".join(file.read_bytes().decode(errors="replace") for file in tmp_path.rglob("*") if file.is_file())
    assert PASSWORD not in written + "".join(capfd.readouterr())
