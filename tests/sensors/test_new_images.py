"""Files that land, change or leave are ingested once; a failed run is tried again."""

from pathlib import Path

import dagster as dg
import pytest

from image_assets.continuous import TRIGGER_TAG
from resources.file_system import fingerprint
from resources.image_folder import ImageFolder
from sensors.attempts import ATTEMPTS
from sensors.new_images import new_images
from tests.images import png, put


class IngestConfig(dg.Config):
    fails: bool = False


@dg.asset
def image_files(config: IngestConfig, image_folder: ImageFolder) -> dg.MaterializeResult:
    """Says what the asset of this name says of the folder."""
    if config.fails:
        raise ValueError("no Spark")
    return dg.MaterializeResult(metadata={"folder_fingerprint": fingerprint(image_folder.list_files())})


DEFINITIONS = dg.Definitions(
    assets=[image_files],
    jobs=[dg.define_asset_job("ingest_images", selection="image_files")],
    sensors=[new_images],
    resources={"image_folder": ImageFolder(root="/nowhere")},
)


class Daemon:
    """What Dagster's daemon does with the sensor: keeps its cursor, never launches a run key twice."""

    def __init__(self, landing: Path, settle_seconds: float = 0) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.image_folder = ImageFolder(root=str(landing), settle_seconds=settle_seconds)
        self.cursor: str | None = None
        self.run_keys: list[str] = []

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            sensor_name="new_images",
            resources={"image_folder": self.image_folder},
        )
        answer = new_images(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
        return answer

    def ingest(self, *, fails: bool = False, tags: dict[str, str] | None = None) -> None:
        config = dg.RunConfig(ops={"image_files": IngestConfig(fails=fails)})
        DEFINITIONS.resolve_job_def("ingest_images").execute_in_process(
            instance=self.instance,
            run_config=config,
            resources={"image_folder": self.image_folder},
            tags=tags,
            raise_on_error=False,
        )

    def launched(self, *, fails: bool = False) -> int:
        """How many runs a tick launched."""
        answer = self.tick()
        requests = (answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
        fresh = [request.run_key for request in requests if request.run_key not in self.run_keys]
        for run_key in fresh:
            assert run_key
            self.run_keys.append(run_key)
            self.ingest(fails=fails, tags={"dagster/run_key": run_key, "dagster/sensor_name": "new_images"})
        return len(fresh)


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    """A landing folder with one file."""
    return put(tmp_path, "landing/ball/a.png", png(1)).parents[1]


@pytest.fixture
def daemon(landing: Path) -> Daemon:
    return Daemon(landing)


def reason(answer: dg.SensorResult | dg.SkipReason) -> str:
    skip = answer.skip_reason if isinstance(answer, dg.SensorResult) else answer
    return (skip.skip_message if isinstance(skip, dg.SkipReason) else skip) or ""


def test_each_state_of_the_folder_is_ingested_once_also_when_it_returns(daemon: Daemon, landing: Path) -> None:
    launched = [daemon.launched(), daemon.launched()]
    for _ in range(2):
        extra = put(landing, "cube/b.png", png(2))
        launched += [daemon.launched(), daemon.launched()]
        extra.unlink()
        launched += [daemon.launched(), daemon.launched()]
    assert launched == [1, 0] * 5
    assert reason(daemon.tick()).startswith("nothing new among 1 files")
    assert len(daemon.cursor or "") < 100


def test_a_folder_that_is_emptied_is_ingested_and_one_that_was_always_empty_is_not(
    daemon: Daemon, landing: Path
) -> None:
    assert daemon.launched() == 1
    (landing / "ball" / "a.png").unlink()
    assert [daemon.launched(), daemon.launched()] == [1, 0]
    unused = Daemon(landing)
    assert reason(unused.tick()).endswith("holds no image file yet")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "does not exist: make it" in reason(Daemon(tmp_path / "photos").tick())


def test_what_someone_else_ingested_is_not_asked_for(daemon: Daemon, landing: Path) -> None:
    daemon.ingest()
    assert daemon.launched() == 0
    put(landing, "cube/b.png", png(2))
    assert daemon.launched() == 1
    put(landing, "cube/c.png", png(3))
    daemon.ingest()
    assert daemon.launched() == 0


def test_nothing_is_asked_for_while_a_run_goes_on(daemon: Daemon) -> None:
    job = DEFINITIONS.resolve_job_def("ingest_images")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert f"waiting for run {run.run_id}" in reason(daemon.tick())
    daemon.instance.report_run_failed(run)
    assert daemon.launched() == 1


def test_nothing_is_asked_for_while_a_continuous_run_goes_on(daemon: Daemon, landing: Path) -> None:
    job = DEFINITIONS.resolve_job_def("ingest_images")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={TRIGGER_TAG: "30 seconds"})
    put(landing, "cube/b.png", png(2))
    assert daemon.launched() == 0
    assert f"run {run.run_id} goes on, looks every 30 seconds" in reason(daemon.tick())
    daemon.instance.report_run_canceled(run)
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_failed_run_is_tried_again_a_few_times_and_then_waits_for_a_change(daemon: Daemon, landing: Path) -> None:
    assert [daemon.launched(fails=True) for _ in range(ATTEMPTS + 2)] == [1] * ATTEMPTS + [0, 0]
    assert f"{ATTEMPTS} runs for this failed" in reason(daemon.tick())
    put(landing, "cube/b.png", png(2))
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_failure_is_followed_by_one_success(daemon: Daemon) -> None:
    assert [daemon.launched(fails=True), daemon.launched(), daemon.launched()] == [1, 1, 0]


def test_a_file_that_is_being_written_is_not_yet_a_change(landing: Path) -> None:
    daemon = Daemon(landing, settle_seconds=3600)
    daemon.instance.report_runless_asset_event(
        dg.AssetMaterialization("image_files", metadata={"folder_fingerprint": fingerprint([])})
    )
    assert reason(daemon.tick()).startswith("nothing new among 1 files")


def test_the_sensor_runs_by_default_and_its_job_exists() -> None:
    dg.Definitions.validate_loadable(DEFINITIONS)
    assert new_images.default_status is dg.DefaultSensorStatus.RUNNING
