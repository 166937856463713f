"""Runs on a landing folder whose files vanished or cannot be read. Nothing is read, so nothing needs Spark."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import dagster as dg
import pytest

from image_assets.data.data_checks import every_folder_readable
from image_assets.data.image_files import merge_decisions, read_ledger, to_decision
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.data.raw_images import TRIGGER_TAG, IngestConfig, ingest, raw_images
from image_assets.predictions.current_predictions import current_predictions
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, RAW_IMAGES, REPLAYED_FILES
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import file_layout
from resources.files.image_folder import FolderUnavailable, ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from tests.support.images import png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes
from tests.support.tables import tables_at

TABLES = (IMAGE_FILES, RAW_IMAGES, CURRENT_PREDICTIONS)


@pytest.fixture
def tables(home: Path, image_folder: ImageFolder, eight_images: dict[str, bytes]) -> DeltaTables:
    """The tables after the eight images were ingested, but for one: its run was killed before it wrote the ledger."""
    tables = tables_at(home / "tables")
    rows = [
        {
            "path": file.path,
            "modification_time": file.modification_time,
            "length": file.length,
            "image_id": sha256(eight_images[file.path.removeprefix(f"{image_folder.path}/")]).hexdigest(),
            "content": eight_images[file.path.removeprefix(f"{image_folder.path}/")],
        }
        for file in list_files(image_folder)
    ]
    files = zip(list_files(image_folder), rows, strict=True)
    decisions = [to_decision(file, CURRENT, None, None, row["image_id"]) for file, row in files]
    for part in (slice(0, 7), slice(7, 8)):
        tables.create(RAW_IMAGES)
        written = list(write_files(rows[part], tables.uri(RAW_IMAGES), file_layout(RAW_IMAGES)))
        version = tables.append_files(RAW_IMAGES, written)
        if part.stop == 7:
            merge_decisions(tables, decisions[part], version)
    tables.create(CURRENT_PREDICTIONS)
    return tables


def take_in(tables: DeltaTables, image_folder: ImageFolder, **config: bool) -> str:
    """Ingest, and return what was found."""
    return str(ingest(tables, image_folder, IngestConfig(**config), dg.get_dagster_logger()))


def states(tables: DeltaTables) -> dict[str, tuple[str, str | None]]:
    """State and reason of each file in the ledger, by the file's name."""
    return {Path(path).name: (known.state, known.reason) for path, known in read_ledger(tables).items()}


def run(
    tables: DeltaTables, image_folder: ImageFolder, assets: list, tags: dict[str, str], **config: bool
) -> dg.ExecuteInProcessResult:
    """A Dagster run of these assets."""
    resources = {"delta_tables": tables, "image_folder": image_folder}
    return dg.materialize(
        assets,
        resources=resources | {"model_registry": ModelRegistry(tracking_uri="file:///nowhere")},
        run_config={"ops": {"raw_images": {"config": config}}},
        tags=tags,
        instance=dg.DagsterInstance.ephemeral(),
        raise_on_error=False,
    )


def unmount(landing: Path) -> None:
    """Leave an empty mount point."""
    landing.rename(landing.with_name("disk"))
    landing.mkdir()


def test_a_run_on_an_unmounted_folder_fails_before_it_writes_anything(
    tables: DeltaTables, image_folder: ImageFolder, landing: Path
) -> None:
    before = [tables.snapshot(table) for table in TABLES]
    unmount(landing)
    failed = run(tables, image_folder, [raw_images, current_predictions], {})
    assert not failed.success
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert "8 of 8 current files are gone" in str(failure.step_failure_data.error)
    assert {event.step_key for event in failed.all_events if event.is_step_start} == {"raw_images"}
    assert [tables.snapshot(table) for table in TABLES] == before
    assert not Path(tables.uri(REPLAYED_FILES)).exists()


@pytest.mark.parametrize("gone", [unmount, lambda landing: landing.rename(landing.with_name("disk"))])
def test_a_continuous_run_goes_on_without_the_folder(
    tables: DeltaTables, image_folder: ImageFolder, landing: Path, gone: Callable[[Path], object]
) -> None:
    before = [tables.snapshot(table) for table in TABLES]
    gone(landing)
    assert run(tables, image_folder, [raw_images], {TRIGGER_TAG: "30 seconds"}).success
    assert [tables.snapshot(table) for table in TABLES] == before
    assert not run(tables, image_folder, [raw_images], {}).success


def test_a_run_that_accepts_it_records_the_files_as_missing_and_they_return(
    tables: DeltaTables, image_folder: ImageFolder, landing: Path, eight_images: dict[str, bytes]
) -> None:
    unmount(landing)
    assert run(tables, image_folder, [raw_images], {}, accept_missing=True).success
    assert states(tables) == {Path(name).name: (MISSING, None) for name in eight_images}
    assert take_in(tables, image_folder) == "0 files, 0 checked: no changes"


def test_after_an_unmounted_disk_is_back_nothing_has_to_be_done(
    tables: DeltaTables, image_folder: ImageFolder, landing: Path, eight_images: dict[str, bytes]
) -> None:
    unmount(landing)
    with pytest.raises(FolderUnavailable):
        take_in(tables, image_folder)
    landing.rmdir()
    landing.with_name("disk").rename(landing)
    assert take_in(tables, image_folder) == "8 files, 8 checked: no changes"
    assert states(tables) == {Path(name).name: (CURRENT, None) for name in eight_images}
    (landing / "ball" / "ball 0.png").unlink()
    assert take_in(tables, image_folder) == "7 files, 7 checked: 1 deleted"


def test_an_unreadable_folder_is_one_entry_until_it_can_be_read(
    tables: DeltaTables, image_folder: ImageFolder, landing: Path, eight_images: dict[str, bytes]
) -> None:
    def warning() -> str | None:
        result = every_folder_readable(delta_tables=tables)
        assert isinstance(result, dg.AssetCheckResult)
        assert (result.passed, result.severity) == (result.description is None, dg.AssetCheckSeverity.WARN)
        return result.description

    put(landing, "backup/notes.txt", png(9))
    assert take_in(tables, image_folder) == "8 files, 8 checked: no changes"
    assert warning() is None
    for name in ("cube", "backup"):
        (landing / name).chmod(0o000)
    try:
        with obeying_modes():
            assert take_in(tables, image_folder) == "4 files, 4 checked: 2 unreadable"
            assert take_in(tables, image_folder) == "4 files, 4 checked: no changes"
            assert run(tables, image_folder, [raw_images], {}).success
    finally:
        for name in ("cube", "backup"):
            (landing / name).chmod(0o755)
    current = {Path(name).name: (CURRENT, None) for name in eight_images}
    folders = dict.fromkeys(["cube", "backup"])
    assert states(tables) == current | {name: (QUARANTINED, "unreadable_folder") for name in folders}
    assert str(warning()).startswith("2 folders cannot be read: give the account")
    take_in(tables, image_folder)
    assert states(tables) == current | {name: (MISSING, "unreadable_folder") for name in folders}
    assert warning() is None
