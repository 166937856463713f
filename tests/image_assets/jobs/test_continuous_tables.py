"""The first tables of ingest_images follow the folder in many passes, also after a cancelled one."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable

from image_assets.data.featured_images import featured_images
from image_assets.data.raw_images import raw_images
from image_assets.jobs.continuous import continuous_executor, news_of_files
from resources.settings import create_resources, read_settings
from tests.support.images import png, put
from tests.support.runs_apart import PATIENCE_SECONDS, Going, apart, to_instance


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with to_instance(tmp_path) as instance:
        yield instance


def to_tables_job() -> dg.JobDefinition:
    """The first tables of ingest_images, on the home that the environment names."""
    return dg.Definitions(
        assets=[raw_images, featured_images],
        jobs=[dg.define_asset_job("ingest_images", executor_def=continuous_executor(news_of_files))],
        resources=create_resources(read_settings()),
    ).resolve_job_def("ingest_images")


@pytest.mark.spark
def test_the_tables_follow_the_folder_through_passes_a_cancelled_step_and_another_run(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(table: str) -> Counter[str]:
        return Counter(DeltaTable(str(tmp_path / "tables" / table)).to_pandas(columns=["path"])["path"])

    monkeypatch.setenv("IMAGE_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("IMAGE_ASSETS_SPARK_MASTER", "local[2]")
    files = [put(tmp_path / "landing", f"ball/{number}.png", png(number)) for number in range(8)]
    with apart(__name__, "to_tables_job()", tmp_path, "1 second") as process:
        going = Going(instance, process)
        going.wait_for(going.passes, "a first pass")
        files.append(put(tmp_path / "landing", "ball/8.png", png(8)))
        going.wait_for(lambda: len(going.passes()) == 2, "a pass for the new file")
        assert "featured_images +1" in going.passes()[1]
        assert len(rows("featured_images")) == 9
        files += [put(tmp_path / "landing", f"cube/{number}.png", png(number)) for number in range(9, 60)]
        going.wait_for(lambda: going.steps_at_work() == {"featured_images"}, "a step at work")
        assert going.stop(signal.SIGTERM) is dg.DagsterRunStatus.CANCELED
        assert going.steps_at_work() == set()
    with apart(__name__, "to_tables_job()", tmp_path) as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert instance.get_runs()[0].status is dg.DagsterRunStatus.SUCCESS
    expected = Counter(f"file:{file}" for file in files)
    for table in ("image_files", "raw_images", "featured_images"):
        assert rows(table) == expected, table
