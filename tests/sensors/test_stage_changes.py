"""A model version that enters Production or Staging leads to a run of predict_images."""

import shutil
import socket
import threading
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from image_assets.schemas import STAGE_HISTORY
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.mlflow.mlflow_tracking import PermissionRefused, create_store
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry
from sensors.attempts import ATTEMPTS
from sensors.stage_changes import stage_changes_watching
from tests.support.tables import tables_at


@dg.op
def predict(context: dg.OpExecutionContext) -> None:
    if context.run.tags.get("fails"):
        raise ValueError("no images")


@dg.job
def predict_images() -> None:
    predict()


@pytest.fixture
def registry(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """A registry with two versions, neither of them in a stage."""
    empty = tmp_path_factory.getbasetemp() / "empty_store" / "mlflow.db"
    create_store(f"sqlite:///{empty}")
    shutil.copy(empty, tmp_path / "mlflow.db")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    for framework in ("tensorflow", "torch"):
        client.create_model_version(registry.name, (tmp_path / framework).as_uri(), tags={FILES_DIGEST: "0" * 64})
    return registry


class Daemon:
    """What Dagster's daemon does with a sensor: keeps its cursor, never launches a run key twice."""

    def __init__(self, tables: DeltaTables, watch_seconds: float = 0) -> None:
        self.tables = tables
        self.stage_changes = stage_changes_watching(watch_seconds)
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None
        self.run_keys: list[str] = []

    def tick(self, registry: ModelRegistry) -> dg.SensorResult | dg.SkipReason:
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            sensor_name="stage_changes",
            resources={
                "model_registry": registry,
                "delta_tables": self.tables,
                "inference_device": InferenceDevice(run_tags={"launcher/gpu": "1"}),
            },
        ) as context:
            answer = self.stage_changes(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
        return answer

    def launched(self, registry: ModelRegistry, *, fails: bool = False) -> list[str]:
        """The model versions that a tick launched runs for."""
        answer = self.tick(registry)
        requests = (answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
        fresh = [request for request in requests if request.run_key not in self.run_keys]
        for request in fresh:
            assert request.run_key
            self.run_keys.append(request.run_key)
            tags = {"dagster/run_key": request.run_key, "dagster/sensor_name": "stage_changes", **request.tags}
            predict_images.execute_in_process(
                instance=self.instance, tags={**tags, **({"fails": "yes"} if fails else {})}, raise_on_error=False
            )
        return [request.tags.get("image_assets/model_version", "none") for request in fresh]


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tables_at(tmp_path / "tables"))


def reason(answer: dg.SensorResult | dg.SkipReason) -> str:
    skip = answer.skip_reason if isinstance(answer, dg.SensorResult) else answer
    return (skip.skip_message if isinstance(skip, dg.SkipReason) else skip) or ""


def test_each_change_of_the_serving_version_is_one_run_also_when_a_version_returns(
    registry: ModelRegistry, daemon: Daemon
) -> None:
    assert daemon.launched(registry) == []
    launched = []
    for version in (1, 2, 1, 2):
        registry.promote(version, "Production")
        launched += [daemon.launched(registry), daemon.launched(registry)]
    assert launched == [["1"], [], ["2"], [], ["1"], [], ["2"], []]
    assert len(daemon.cursor or "") < 100


def test_a_promotion_during_a_tick_is_noticed_by_that_tick(registry: ModelRegistry, tmp_path: Path) -> None:
    daemon = Daemon(tables_at(tmp_path / "tables"), watch_seconds=60)
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    promotion = threading.Timer(0.5, registry.promote, [2, "Production"])
    promotion.start()
    assert daemon.launched(registry) == ["2"]
    promotion.join()


def test_several_changes_between_two_ticks_lead_to_one_run_for_the_last(
    registry: ModelRegistry, daemon: Daemon
) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    before = daemon.cursor
    for version in (2, 1, 2):
        registry.promote(version, "Production")
    assert [daemon.launched(registry), daemon.launched(registry)] == [["2"], []]
    daemon.cursor = before  # of a daemon that was killed after it launched the run
    assert [daemon.launched(registry), daemon.launched(registry)] == [[], []]
    for version in (1, 2):
        registry.promote(version, "Production")
    assert daemon.launched(registry) == []


def test_a_version_that_serves_on_the_first_tick_is_predicted(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(2, "Production")
    answer = daemon.tick(registry)
    assert isinstance(answer, dg.SensorResult)
    request = (answer.run_requests or [])[0]
    assert request.tags == {
        "image_assets/model_version": "2",
        "image_assets/stage": "Production",
        "image_assets/pool": "gpu",
        "launcher/gpu": "1",
    }


def test_a_version_in_staging_predicts_along_with_the_serving_one(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    registry.promote(2, "Staging")
    answer = daemon.tick(registry)
    assert isinstance(answer, dg.SensorResult)
    tags = (answer.run_requests or [])[0].tags
    assert (tags["image_assets/model_version"], tags["image_assets/shadow_versions"]) == ("1", "2")
    assert daemon.launched(registry) == []


def test_a_version_that_serves_again_after_none_did_is_predicted_again(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    registry.promote(1, "Archived")
    assert reason(daemon.tick(registry)) == "No version of image_classifier is in production."
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]


def test_a_failed_run_is_retried_a_few_times(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    launched = [daemon.launched(registry, fails=True) for _ in range(ATTEMPTS + 2)]
    assert launched == [["1"]] * ATTEMPTS + [[], []]
    assert f"{ATTEMPTS} runs failed on these changes." in reason(daemon.tick(registry))
    registry.promote(2, "Production")
    assert daemon.launched(registry) == ["2"]


def test_a_change_during_a_run_waits_for_its_end(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    run = daemon.instance.create_run_for_job(predict_images, status=dg.DagsterRunStatus.STARTED)
    assert f"Waiting for run {run.run_id}" in reason(daemon.tick(registry))
    daemon.instance.report_run_failed(run)
    assert daemon.launched(registry) == ["1"]


def test_a_registry_that_is_down_is_reported_and_the_cursor_stays(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    daemon.launched(registry)
    cursor = daemon.cursor
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = ModelRegistry(tracking_uri=f"http://127.0.0.1:{unused.getsockname()[1]}")
    answer = daemon.tick(down)
    assert "does not answer" in reason(answer)
    assert daemon.cursor == cursor
    assert daemon.launched(registry) == []


def test_an_alias_or_stage_moved_in_mlflow_is_followed_and_predicted(registry: ModelRegistry, daemon: Daemon) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.set_registered_model_alias(registry.name, "production", "2")
    assert [daemon.launched(registry), daemon.launched(registry)] == [["2"], []]
    assert registry.state() == ((1, "Archived", ()), (2, "Production", ("production",)))
    with pytest.warns(FutureWarning):
        client.transition_model_version_stage(registry.name, "1", "Production")
    assert [daemon.launched(registry), daemon.launched(registry)] == [["1"], []]
    assert registry.state() == ((1, "Production", ("production",)), (2, "Archived", ()))


class ReadOnly(ModelRegistry):
    """A registry whose account may only read."""

    def mirror(self, stage: str, number: int | None) -> None:
        """Refused."""
        raise PermissionRefused("this account may not")


def test_an_account_that_may_only_read_follows_the_alias_and_reports_the_stage(
    registry: ModelRegistry, daemon: Daemon
) -> None:
    registry.promote(1, "Production")
    read_only = ReadOnly(tracking_uri=registry.tracking_uri)
    assert daemon.launched(read_only) == ["1"]
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.set_registered_model_alias(registry.name, "production", "2")
    assert [daemon.launched(read_only), daemon.launched(read_only)] == [["2"], []]
    answer = reason(daemon.tick(read_only))
    assert "Version 2 is serving." in answer
    assert "Alias production is on version 2, but stage Production has version 1. The alias decides" in answer
    assert "this account may not" in answer


def test_a_registry_that_was_replaced_is_reported(
    registry: ModelRegistry, daemon: Daemon, empty_store: Path, tmp_path: Path
) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert "has none of the versions of image_classifier" in reason(daemon.tick(registry))
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.create_registered_model(registry.name)
    client.create_model_version(registry.name, (tmp_path / "torch").as_uri(), tags={FILES_DIGEST: "1" * 64})
    registry.promote(1, "Production")
    assert [daemon.launched(registry), daemon.launched(registry)] == [["1"], []], "another version with the number 1"
    answer = reason(daemon.tick(registry))
    assert "Version 1 is serving." in answer
    assert "Warning: The registry" in answer
    assert "a different version 1 of image_classifier from the one that earlier rows of stage_history belong" in answer
    assert "is MLFLOW_TRACKING_URI right" in answer


def test_a_version_without_the_digest_of_its_files_is_explained_and_not_predicted(
    registry: ModelRegistry, daemon: Daemon
) -> None:
    registry.promote(1, "Production")
    assert daemon.launched(registry) == ["1"]
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.delete_model_version_tag(registry.name, "2", FILES_DIGEST)
    registry.promote(2, "Staging")
    assert daemon.launched(registry) == []
    assert "Version 1 is serving." in reason(daemon.tick(registry))
    assert "the tag files_digest is missing: 2. Nobody knows" in reason(daemon.tick(registry))
    registry.promote(2, "Production")
    assert daemon.launched(registry) == []
    assert "the tag files_digest is missing: 2. Nobody knows" in reason(daemon.tick(registry))
    client.set_model_version_tag(registry.name, "2", FILES_DIGEST, "0" * 64)
    assert daemon.launched(registry) == ["2"]


def test_stage_changes_made_in_mlflow_are_recorded(registry: ModelRegistry, daemon: Daemon) -> None:
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.set_model_version_tag(registry.name, "2", "seen", "yes")
    daemon.tick(registry)
    with pytest.warns(FutureWarning):
        client.transition_model_version_stage(registry.name, "2", "Staging")
    assert daemon.launched(registry) == ["none"]
    daemon.tick(registry)
    rows = daemon.tables.read(STAGE_HISTORY, ["change", "model_version", "to_stage", "source"]).to_pylist()
    assert sorted(map(tuple, (row.values() for row in rows))) == [
        (1, 2, "Staging", "mlflow"),
        (2, 2, "Staging", "stage_changes"),  # the alias
    ]


def test_the_sensor_runs_by_default_and_its_job_exists(registry: ModelRegistry, daemon: Daemon) -> None:
    resources = {
        "model_registry": registry,
        "delta_tables": daemon.tables,
        "inference_device": InferenceDevice(),
    }
    stage_changes = stage_changes_watching(0)
    definitions = dg.Definitions(jobs=[predict_images], sensors=[stage_changes], resources=resources)
    dg.Definitions.validate_loadable(definitions)
    assert stage_changes.default_status is dg.DefaultSensorStatus.RUNNING
