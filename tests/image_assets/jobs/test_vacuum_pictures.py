"""Pictures that no asset shows any more are removed once they are older than the retention."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from image_assets.images.charts import picture_markdown
from image_assets.jobs.vacuum_tables import VacuumConfig, vacuum_pictures
from resources.pictures import FOLDER, linked, with_picture_files
from tests.support.images import png

HOURS = 3600


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


def show(instance: dg.DagsterInstance, home: Path, asset: str, number: int, age_hours: float) -> Path:
    """Materializes an asset with a picture that was stored some hours ago."""
    metadata = with_picture_files({"picture": dg.MetadataValue.md(picture_markdown(png(number), asset))}, home)
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=metadata))
    file = home / FOLDER / next(linked(metadata))
    os.utime(file, (time.time(), time.time() - age_hours * HOURS))
    return file


def test_old_pictures_that_nothing_shows_are_removed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    replaced = show(instance, tmp_path, "shells", 1, age_hours=200)
    young = show(instance, tmp_path, "shells", 2, age_hours=1)
    shown = show(instance, tmp_path, "shells", 3, age_hours=200)
    other = show(instance, tmp_path, "whelks", 4, age_hours=200)
    left_by_a_kill = tmp_path / FOLDER / ".part"
    left_by_a_kill.write_bytes(b"cut o")
    os.utime(left_by_a_kill, (0, 0))
    report = vacuum_pictures(tmp_path, instance, VacuumConfig())
    assert (report.done, report.files) == ("would be removed", 2)
    assert replaced.is_file()
    vacuum_pictures(tmp_path, instance, VacuumConfig(dry_run=False))
    assert set((tmp_path / FOLDER).iterdir()) == {young, shown, other}


def test_a_picture_that_is_shown_again_counts_as_new(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Its materialization may not be recorded yet."""
    file = show(instance, tmp_path, "shells", 1, age_hours=200)
    show(instance, tmp_path, "shells", 2, age_hours=0)
    with_picture_files({"picture": dg.MetadataValue.md(picture_markdown(png(1), "shells"))}, tmp_path)
    vacuum_pictures(tmp_path, instance, VacuumConfig(dry_run=False))
    assert file.is_file()


def test_a_home_without_pictures_has_nothing_to_remove(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    assert vacuum_pictures(tmp_path, instance, VacuumConfig(dry_run=False)).done == "nothing to remove"
