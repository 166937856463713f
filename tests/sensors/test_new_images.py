"""Files that are added, changed or deleted are ingested once; failed runs are retried."""

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from image_assets.data.raw_images import IngestConfig
from image_assets.jobs.continuous import TRIGGER_TAG
from resources.delta.external_table import ExternalTable
from resources.files.image_folder import ImageFolder
from sensors.attempts import ATTEMPTS, RequestKey
from sensors.new_images import new_images_every, parse_cursor, to_cursor
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes
from tests.support.tables import tables_at


def write_ledger(image_folder: ImageFolder, home: Path, paths: Collection[str] = ()) -> None:
    """Write the ledger as it is once these files, by default all in the folder, have been ingested."""
    files = [file for file in list_files(image_folder) if not paths or file.path in paths]
    columns = {
        "path": pa.array([file.path for file in files], pa.string()),
        "state": pa.array(["current"] * len(files), pa.string()),
        "reason": pa.array([None] * len(files), pa.string()),
        "image_id": pa.array([None] * len(files), pa.string()),
        "length": pa.array([file.length for file in files], pa.int64()),
        "modification_time": pa.array([file.modification_time for file in files], pa.timestamp("us", "UTC")),
    }
    write_deltalake(str(home / "image_files"), pa.table(columns), mode="overwrite")


new_images = new_images_every(10)


@dg.op
def raw_images(
    context: dg.OpExecutionContext, config: IngestConfig, image_folder: ImageFolder, label_table: ExternalTable
) -> None:
    """Updates the ledger and the label table's version as the real assets do, or fails on purpose."""
    if context.run.tags.get("fails"):
        raise ValueError("no Spark")
    write_ledger(image_folder, Path(context.run.tags["home"]), config.paths)
    metadata = {"label_table_version": label_table.version()}
    context.instance.report_runless_asset_event(dg.AssetMaterialization("given_labels", metadata=metadata))
    if context.run.tags.get("fails_late"):
        raise ValueError("no model registry")


@dg.job
def ingest_images() -> None:
    raw_images()


DEFINITIONS = dg.Definitions(
    jobs=[ingest_images],
    sensors=[new_images],
    resources={
        "image_folder": ImageFolder(root="/nowhere"),
        "label_table": ExternalTable(),
        "delta_tables": tables_at("/nowhere"),
    },
)


class Daemon:
    """What Dagster's daemon does with the sensor: keeps its cursor, never launches a run key twice."""

    def __init__(self, landing: Path, settle_seconds: float = 0, sweep_files: int = 10_000) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.home = landing.parent / f"{landing.name} tables"
        self.image_folder = ImageFolder(root=str(landing), settle_seconds=settle_seconds, sweep_files=sweep_files)
        self.label_table = ExternalTable()
        self.cursor: str | None = None
        self.run_keys: list[str] = []

    def resources(self) -> dict[str, dg.ConfigurableResource]:
        tables = tables_at(self.home)
        return {"image_folder": self.image_folder, "label_table": self.label_table, "delta_tables": tables}

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            sensor_name="new_images",
            resources=self.resources(),
        ) as context:
            answer = new_images(context)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
        return answer

    def ingest(self, *, fails: str = "", tags: dict[str, str] | None = None, config: dict | None = None) -> None:
        failing = {fails: "yes"} if fails else {}
        DEFINITIONS.resolve_job_def("ingest_images").execute_in_process(
            instance=self.instance,
            run_config=config,
            resources=self.resources(),
            tags={**(tags or {}), **failing, "home": str(self.home)},
            raise_on_error=False,
        )

    def launched(self, *, fails: str = "") -> int:
        """How many runs a tick launched."""
        answer = self.tick()
        requests = (answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
        fresh = [request for request in requests if request.run_key not in self.run_keys]
        for request in fresh:
            assert request.run_key
            self.run_keys.append(request.run_key)
            tags = {"dagster/run_key": request.run_key, "dagster/sensor_name": "new_images"}
            self.ingest(fails=fails, tags=tags, config=request.run_config)
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
    assert reason(daemon.tick()).endswith("landing: 1 file, 1 checked: no changes.")
    assert len(daemon.cursor or "") < 100


def test_a_folder_that_is_emptied_is_not_believed_until_its_files_return_or_a_run_accepts_it(
    daemon: Daemon, landing: Path
) -> None:
    assert daemon.launched() == 1
    file = landing / "ball" / "a.png"
    file.unlink()
    assert [daemon.launched(), daemon.launched()] == [0, 0]
    assert "1 of 1 current files are gone from the landing folder" in reason(daemon.tick())
    assert "launch ingest_images with the run config" in reason(daemon.tick())
    put(landing, "ball/a.png", png(1))
    assert [daemon.launched(), daemon.launched()] == [1, 0], "the file has another time"
    file.unlink()
    daemon.ingest(config={"ops": {"raw_images": {"config": {"accept_missing": True}}}})
    assert daemon.launched() == 0
    assert "landing: 0 files, 0 checked: no changes." in reason(daemon.tick())


def test_files_that_vanish_are_not_believed_if_they_are_many_and_ingested_if_they_are_few(
    daemon: Daemon, landing: Path
) -> None:
    files = [put(landing, f"cube/{number}.png", png(number)) for number in range(39)]
    assert daemon.launched() == 1
    for file in files[:21]:
        file.unlink()
    assert daemon.launched() == 0
    assert "21 of 40 current files are gone" in reason(daemon.tick())
    put(landing, "cube/0.png", png(0))
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_folder_that_was_always_empty_has_nothing_to_ingest(daemon: Daemon, landing: Path) -> None:
    (landing / "ball" / "a.png").unlink()
    unused = Daemon(landing)
    unused.home = landing.parent / "no tables"
    assert "landing: 0 files" in reason(unused.tick())


@pytest.mark.parametrize(
    ("damage", "error"),
    [(Path.unlink, FileNotFoundError), (lambda file: file.write_bytes(b"damaged"), pa.ArrowInvalid)],
)
def test_a_damaged_ledger_fails_the_tick(
    daemon: Daemon, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    assert daemon.launched() == 1
    for file in (daemon.home / "image_files").glob("*.parquet"):
        damage(file)
    with pytest.raises(error):
        daemon.tick()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert "does not exist. Create it" in reason(Daemon(tmp_path / "photos").tick())


def test_an_unreadable_folder_is_ingested_and_stops_nothing(daemon: Daemon, landing: Path) -> None:
    put(landing, "backup/b.png", png(2))
    (landing / "backup").chmod(0o000)
    try:
        with obeying_modes():
            assert daemon.launched() == 1
    finally:
        (landing / "backup").chmod(0o755)


def test_nothing_is_requested_for_what_another_run_has_ingested(daemon: Daemon, landing: Path) -> None:
    daemon.ingest()
    assert daemon.launched() == 0
    put(landing, "cube/b.png", png(2))
    assert daemon.launched() == 1
    put(landing, "cube/c.png", png(3))
    daemon.ingest()
    assert daemon.launched() == 0


def test_nothing_is_requested_while_a_run_is_active(daemon: Daemon) -> None:
    job = DEFINITIONS.resolve_job_def("ingest_images")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert f"Waiting for run {run.run_id}" in reason(daemon.tick())
    daemon.instance.report_run_failed(run)
    assert daemon.launched() == 1


def test_nothing_is_requested_while_a_continuous_run_is_active(daemon: Daemon, landing: Path) -> None:
    job = DEFINITIONS.resolve_job_def("ingest_images")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={TRIGGER_TAG: "30 seconds"})
    put(landing, "cube/b.png", png(2))
    assert daemon.launched() == 0
    assert f"Run {run.run_id} is continuous and checks for changes every 30 seconds" in reason(daemon.tick())
    daemon.instance.report_run_canceled(run)
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_failed_run_is_retried_a_few_times_and_then_waits_for_a_change(daemon: Daemon, landing: Path) -> None:
    assert [daemon.launched(fails="fails") for _ in range(ATTEMPTS + 2)] == [1] * ATTEMPTS + [0, 0]
    assert f"{ATTEMPTS} runs failed on these changes." in reason(daemon.tick())
    put(landing, "cube/b.png", png(2))
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_failure_is_followed_by_one_success(daemon: Daemon) -> None:
    assert [daemon.launched(fails="fails"), daemon.launched(), daemon.launched()] == [1, 1, 0]


def test_a_run_that_failed_after_recording_the_files_is_retried(daemon: Daemon, landing: Path) -> None:
    assert [daemon.launched(fails="fails_late") for _ in range(ATTEMPTS + 2)] == [1] * ATTEMPTS + [0, 0]
    assert reason(daemon.tick()).startswith(f"{landing}: 1 file, 1 checked: no changes. {ATTEMPTS} runs failed")
    daemon.ingest()  # somebody fixed it and launched the job
    assert reason(daemon.tick()).endswith("no changes.")
    put(landing, "cube/b.png", png(2))
    assert [daemon.launched(fails="fails_late"), daemon.launched(), daemon.launched()] == [1, 1, 0]


@pytest.mark.parametrize("failures", [1, ATTEMPTS])
def test_files_whose_run_failed_are_ingested_after_a_run_for_other_files_succeeded(
    daemon: Daemon, landing: Path, failures: int
) -> None:
    assert [daemon.launched(fails="fails") for _ in range(failures)] == [1] * failures
    event = put(landing, "cube/b.png", png(2))
    daemon.ingest(config={"ops": {"raw_images": {"config": {"paths": [f"file:{event}"]}}}})  # as storage_events does
    assert [daemon.launched(), daemon.launched()] == [1, 0]
    assert reason(daemon.tick()).endswith("2 files, 2 checked: no changes.")


def test_an_active_run_that_has_recorded_the_files_may_still_fail(daemon: Daemon) -> None:
    assert daemon.launched(fails="fails_late") == 1
    job = DEFINITIONS.resolve_job_def("ingest_images")
    tags = {"dagster/run_key": daemon.run_keys[-1], "dagster/sensor_name": "new_images"}
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    assert f"no changes. Waiting for run {run.run_id}" in reason(daemon.tick())
    daemon.instance.report_run_failed(run)
    assert [daemon.launched(), daemon.launched()] == [1, 0]


def test_a_changed_label_table_is_read_once_and_so_is_its_removal(daemon: Daemon, landing: Path) -> None:
    assert daemon.launched() == 1
    labels = landing.parent / "labels.csv"
    daemon.label_table = ExternalTable(source=str(labels))
    assert "labels.csv does not exist: expected a file" in reason(daemon.tick())
    launched = []
    for text in ("path,label\na.png,roses\n", "path,label\na.png,tulips\n"):
        labels.write_text(text)
        launched += [daemon.launched(fails="fails"), daemon.launched(), daemon.launched()]
    daemon.label_table = ExternalTable()
    launched += [daemon.launched(), daemon.launched()]
    assert launched == [1, 1, 0, 1, 1, 0, 1, 0]


def test_a_file_that_is_being_written_is_not_a_change_yet(landing: Path) -> None:
    daemon = Daemon(landing, settle_seconds=3600)
    assert reason(daemon.tick()).endswith("1 checked: 1 still being written.")


def test_a_tick_waits_for_a_file_that_settles_soon(landing: Path) -> None:
    daemon = Daemon(landing, settle_seconds=1)
    os.utime(landing / "ball" / "a.png")
    assert daemon.launched() == 1


def test_a_tick_waits_for_no_file_while_others_have_settled(landing: Path) -> None:
    daemon = Daemon(landing, settle_seconds=4)
    os.utime(landing / "ball" / "a.png", (0, 0))
    started = time.monotonic()
    put(landing, "ball/b.png", png(2))
    answer = daemon.tick()
    assert isinstance(answer, dg.SensorResult)
    assert answer.run_requests
    assert time.monotonic() - started < 4


def test_a_file_that_keeps_growing_does_not_hold_up_the_tick(landing: Path) -> None:
    daemon, grown = Daemon(landing, settle_seconds=2), threading.Event()

    def grow() -> None:
        while not grown.wait(0.2):
            os.utime(landing / "ball" / "a.png")

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        assert "1 still being written" in reason(daemon.tick())
    finally:
        grown.set()
        growing.join()


def test_a_replaced_file_is_found_and_ingested_when_its_slice_is_checked(landing: Path) -> None:
    for number in range(30):
        put(landing, f"cube/{number}.png", png(number))
    daemon = Daemon(landing, sweep_files=5)
    assert daemon.launched() == 1
    replaced = landing / "cube" / "7.png"
    replaced.write_bytes(png(99))
    launched = [daemon.launched(fails="fails") for _ in range(9)]
    assert sum(launched) == ATTEMPTS, "a failed run is retried, whichever slice is next"
    assert f"1 new or changed. {ATTEMPTS} runs failed on these changes." in reason(daemon.tick())
    os.utime(replaced)
    assert [daemon.launched(), *(daemon.launched() for _ in range(8))] == [1] + [0] * 8


def test_the_sensor_waits_for_runs_of_other_jobs_that_read_the_folder(daemon: Daemon) -> None:
    @dg.job
    def whole_path() -> None:
        raw_images()

    run = daemon.instance.create_run_for_job(whole_path, status=dg.DagsterRunStatus.STARTED)
    assert f"Waiting for run {run.run_id}" in reason(daemon.tick())


def test_the_sensor_runs_by_default_and_its_job_exists() -> None:
    dg.Definitions.validate_loadable(DEFINITIONS)
    assert new_images.default_status is dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(
    ("stored", "part", "key"),
    [(None, 0, None), ("", 0, ""), ("12 0a1b.3.2", 12, "0a1b.3.2"), ("0a1b.3.2", 0, "0a1b.3.2")],
)
def test_the_cursor_keeps_the_format_that_homes_have_stored(stored: str | None, part: int, key: str | None) -> None:
    assert parse_cursor(stored) == (part, key)


def test_a_cursor_is_written_as_it_is_parsed() -> None:
    key = RequestKey("0a1b", 3, 2)
    assert parse_cursor(to_cursor(12, key)) == (12, str(key))
