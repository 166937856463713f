"""Who may do what, with a real MLflow server and accounts; no password is left anywhere."""

import base64
import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pyspark.sql import functions as F

from image_assets.jobs.promote_model import move, promote_model
from image_assets.models.promotion_gate import LINEAGE
from image_assets.models.stage_history import Promotion, stage_history
from image_assets.models.training import FILES_DIGEST
from image_assets.predictions.current_predictions import current_predictions
from image_assets.predictions.image_predictions import image_predictions
from image_assets.predictions.version_agreements import version_agreements
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_SPLITS, STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import MlflowTracking, PermissionRefused
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import create_resources, read_settings
from sensors.stage_changes import stage_changes_watching
from tests.support.job_runs import create_instance
from tests.support.mlflow_server import ADMINISTRATOR, MlflowServer, log_in, password_of
from tests.support.tables import tables_at

MODEL = "image_classifier"
LABELS = ["ball", "cube"]
# Says the label that the path names, and cannot bear one image from the day on which this file is there.
CLASSIFIER = """
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Classifier(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        if Path({spoiled!r}).exists() and any(path.endswith("ball 6.png") for path in model_input["path"]):
            raise ValueError("not this one")
        labels = [path.split("/")[-2] for path in model_input["path"]]
        probabilities = [[0.75, 0.25]] * len(labels)
        columns = zip(labels, [0.75] * len(labels), probabilities)
        return pd.DataFrame(columns, model_input.index, ["label", "probability", "probabilities"])


set_model(Classifier())
"""


class Governed:
    """A server, and accounts that may do as much as docs/governance.md says."""

    def __init__(self, server: MlflowServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.folder, self.monkeypatch = server, folder, monkeypatch
        self.registry = ModelRegistry(tracking_uri=server.url, name=MODEL)

    def log_in(self, account: str) -> None:
        log_in(self.monkeypatch, account)

    def register(self, **tags: str) -> int:
        """A version that the trainer trained, with artifacts on the server."""
        self.log_in("trainer")
        mlflow.set_tracking_uri(self.server.url)
        (self.folder / "classifier.py").write_text(CLASSIFIER.format(spoiled=str(self.folder / "spoiled")))
        with mlflow.start_run(experiment_id=mlflow.set_experiment("image_assets").experiment_id) as run:
            logged = mlflow.pyfunc.log_model(
                name="classifier", python_model=str(self.folder / "classifier.py"), pip_requirements=["mlflow"]
            )
        told = {"framework": "torch", "labels": json.dumps(LABELS), "backbone": "imagenet", **tags}
        digest = self.registry.files_digest(logged.model_uri)
        return self.registry.register(logged.model_uri, run.info.run_id, {FILES_DIGEST: digest, **told}).version


@pytest.fixture(scope="module")
def governed(accounts_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory):
    """Accounts and two versions, the first one with its lineage."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        log_in(monkeypatch, ADMINISTRATOR)
        client = MlflowClient(accounts_server.url)
        client.create_registered_model(MODEL)
        experiment = ("experiment", client.create_experiment("image_assets"))
        model, every_version = ("registered_model", MODEL), ("registered_model_version", "*")
        accounts_server.create_account("trainer", {experiment: "EDIT", model: "EDIT", every_version: "READ"})
        accounts_server.create_account("inference", {experiment: "READ", model: "READ"})
        accounts_server.create_account("promoter", {experiment: "READ", model: "MANAGE"})
        accounts_server.create_account("editor", {experiment: "READ", model: "EDIT"})
        accounts_server.create_account("half", {model: "READ"})
        accounts_server.create_account("outsider", {})
        governed = Governed(accounts_server, tmp_path_factory.mktemp("governed"), monkeypatch)
        governed.register(**dict.fromkeys(LINEAGE[2:], "known"))
        governed.register()
        yield governed


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


def promotion(stage: str = "Production") -> Promotion:
    return Promotion(stage, "promote_model", "Ada", "it is better")


@pytest.mark.parametrize("account", ["inference", "trainer"])
def test_an_account_that_may_not_promote_is_refused_and_nothing_moves(
    governed: Governed, tables: DeltaTables, account: str
) -> None:
    governed.log_in(ADMINISTRATOR)
    before = governed.registry.state()
    governed.log_in(account)
    with pytest.raises(PermissionRefused) as raised:
        move(2, promotion(), governed.registry, tables)
    said = str(raised.value)
    assert said.startswith(
        f"MLflow at {governed.server.url} does not allow account {account} to move version 2 to Production"
    )
    assert "MANAGE on the registered model" in said
    assert password_of(account) not in said
    governed.log_in(ADMINISTRATOR)
    assert governed.registry.state() == before
    assert "promotion" not in governed.registry.version(2).tags
    assert tables.read(STAGE_HISTORY, ["change"]).num_rows == 0


@pytest.mark.parametrize(
    "attempt",
    [
        lambda client: client.transition_model_version_stage(MODEL, "2", "Production"),
        lambda client: client.set_registered_model_alias(MODEL, "production", "2"),
        lambda client: client.set_model_version_tag(MODEL, "2", "table_versions", "{}"),
        lambda client: client.set_model_version_tag(MODEL, "2", "promotion", "{}"),
        lambda client: client.delete_model_version(MODEL, "2"),
        lambda client: client.create_run("1"),
    ],
    ids=["stage", "alias", "lineage", "told", "delete", "run"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_inference_can_change_nothing_in_mlflow_either(
    governed: Governed, attempt: Callable[[MlflowClient], object]
) -> None:
    governed.log_in("inference")
    with pytest.raises(MlflowException) as raised:
        attempt(MlflowClient(governed.server.url))
    assert raised.value.error_code == "PERMISSION_DENIED"


def test_whoever_may_not_read_is_told_so_and_no_table_is_emptied_for_it(
    governed: Governed, tables: DeltaTables
) -> None:
    governed.log_in("promoter")
    move(1, promotion("Staging"), governed.registry, tables)
    governed.log_in("outsider")
    with pytest.raises(PermissionRefused, match="account outsider to list the versions of image_classifier"):
        governed.registry.serving()
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {
            "model_registry": governed.registry,
            "delta_tables": tables,
            "inference_device": InferenceDevice(),
        }
        with dg.build_sensor_context(instance, sensor_name="stage_changes", resources=resources) as context:
            answer = stage_changes_watching(0)(context)
    assert isinstance(answer, dg.SkipReason)
    assert "needs the permission READ" in (answer.skip_message or "")
    assert tables.read(STAGE_HISTORY, ["to_stage"])["to_stage"].to_pylist() == ["Staging"]
    governed.log_in("half")
    with pytest.raises(PermissionRefused, match="READ on the registered model and on the experiment"):
        governed.registry.signature(governed.registry.version(1))
    log_in(governed.monkeypatch, "inference", "wrong-passw0rd")
    with pytest.raises(PermissionRefused, match="rejects the login of account inference") as raised:
        governed.registry.versions()
    assert "passw0rd" not in str(raised.value)


def test_an_alias_that_may_not_be_taken_away_is_no_half_move(governed: Governed, tables: DeltaTables) -> None:
    governed.log_in("promoter")
    move(1, promotion("Staging"), governed.registry, tables)
    before = governed.registry.state()
    governed.log_in("editor")
    with pytest.raises(PermissionRefused, match="account editor to move version 1 to Production"):
        move(1, promotion(), governed.registry, tables)
    assert governed.registry.state() == before
    assert governed.registry.promote(2, "Staging").aliases == ("staging",)


def test_whoever_may_only_read_tracks_no_run_and_is_told_why(governed: Governed) -> None:
    @dg.op
    def train(mlflow_tracking: MlflowTracking) -> None:
        with mlflow_tracking.run_for("torch_model"):
            pytest.fail("a run was opened")

    governed.log_in("inference")
    run = dg.GraphDefinition(name="train_models", node_defs=[train]).execute_in_process(
        resources={"mlflow_tracking": MlflowTracking(tracking_uri=governed.server.url)}, raise_on_error=False
    )
    (failed,) = [event for event in run.all_events if event.is_step_failure]
    said = str(failed.step_failure_data.error)
    assert (
        "does not allow account inference to track runs in image_assets: it needs the permission EDIT on the experiment"
        in said
    )


def left_in(folder: Path, secret: bytes) -> list[str]:
    """The files of a folder that hold a secret, plain or as it travels."""
    return [
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and secret in file.read_bytes()
    ]


def snapshots(home: Path) -> list[str]:
    """What Dagster keeps of jobs beside their runs, which it compresses."""
    with sqlite3.connect(home / "dagster" / "history" / "runs.db") as runs:
        return [zlib.decompress(body).decode() for (body,) in runs.execute("select snapshot_body from snapshots")]


@pytest.mark.spark
def test_inference_predicts_with_read_only_and_leaves_no_password(
    governed: Governed, ingested_tables: DeltaTables, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    splits = ingested_tables.dataframe(IMAGE_SPLITS).withColumn("split", F.lit("test"))
    ingested_tables.overwrite(splits.localCheckpoint(), IMAGE_SPLITS)
    settings = read_settings({"IMAGE_ASSETS_HOME": str(home), "MLFLOW_TRACKING_URI": governed.server.url})
    resources = {**create_resources(settings), "pyspark": ingested_tables.pyspark, "delta_tables": ingested_tables}
    with create_instance(home / "dagster") as instance:

        def promoted(**config: object) -> dg.ExecuteInProcessResult:
            run_config = {"ops": {"promote": {"config": {"version": 2, **config}}}}
            return promote_model.execute_in_process(run_config, instance, resources=resources, raise_on_error=False)

        governed.log_in("promoter")
        assert promoted(force=True, person="Ada").success
        (governed.folder / "spoiled").touch()
        governed.log_in("inference")
        asked = governed.server.log.stat().st_size
        assets = [image_predictions, current_predictions, version_agreements, stage_history]
        assert dg.materialize(assets, resources=resources, instance=instance).success
        refused = promoted(stage="Archived")
        (failed,) = [event for event in refused.all_events if event.is_step_failure]
        assert "does not allow account inference to move version 2 to Archived" in str(failed.step_failure_data.error)
    with governed.server.log.open() as log:
        log.seek(asked)
        denied = [line for line in log if " 403 " in line]
    assert len(denied) == 1  # the promotion: nothing else that ran wanted more than to read
    rows = ingested_tables.dataframe(CURRENT_PREDICTIONS).collect()
    assert len(rows) == 16
    assert [row["fault"] for row in rows if row["path"].endswith("ball 6.png")] == ["raised: ValueError: not this one"]
    (row,) = ingested_tables.dataframe(STAGE_HISTORY).where("reason is null and person = 'Ada'").collect()
    assert (row["to_stage"], row["forced"]) == ("Production", True)
    assert [finding["check"] for finding in row["findings"] if not finding["passed"]][0] == "lineage"
    written = "".join([*capfd.readouterr(), *snapshots(home), str(rows), str(row)])
    assert "model_registry" in written
    for account in ("inference", "promoter"):
        secret = password_of(account)
        travelling = base64.b64encode(f"{account}:{secret}".encode()).decode()
        assert not [text for text in (secret, travelling) if text in written]
        assert left_in(home, secret.encode()) + left_in(home, travelling.encode()) == []
    assert left_in(home, b"inference") != []  # the account's name is told
