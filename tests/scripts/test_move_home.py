"""A moved home names its files at the new place, whatever interrupted the move, and nothing is predicted again."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pandas as pd
import pytest

from image_assets.data.audit import audit
from image_assets.data.featured_images import follow_raw_images
from image_assets.data.grayscale_images import follow_featured_images
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS, RAW_IMAGES, TABLES
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.image_folder import ImageFolder
from resources.home import (
    HomeInUse,
    HomeRecord,
    create_home,
    read_landing,
    read_record,
    require_usable,
    stamp,
    write_landing,
    write_record,
)
from resources.mlflow.model_registry import ModelRegistry
from resources.run_launcher import SOCKET_FILE
from resources.settings import read_settings
from scripts.home import prepare
from scripts.move_home import copy, main, require_unnamed, unfinished
from tests.conftest import Ingested, tables_in
from tests.gallery.small_home import append, landed
from tests.support.homes import ROOT, used_by_another_process
from tests.support.images import png
from tests.support.predictions_run import home_instance, logged_version, run_predictions

OTHER_DISK = Path("/dev/shm")


@pytest.fixture
def variables(home: Path, tmp_path: Path) -> dict[str, str]:
    """The settings of a home with a landing folder elsewhere."""
    found = {"IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": str(tmp_path / "photographs")}
    prepare(read_settings(found))
    return found


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on another file system."""
    if not OTHER_DISK.is_dir() or OTHER_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{OTHER_DISK} is not another file system")
    with TemporaryDirectory(dir=OTHER_DISK) as folder:
        yield Path(folder)


def test_a_home_is_moved_with_its_registry_and_its_versions_answer(
    variables: dict[str, str], home: Path, registry: ModelRegistry, tmp_path: Path
) -> None:
    version = logged_version(registry, home)
    (home / "tables").mkdir()
    main(tmp_path / "moved to" / "a new home", variables)
    new = tmp_path / "moved to" / "a new home"
    assert not home.exists()
    assert read_landing(new) == str(tmp_path / "photographs")
    prepare(read_settings({**variables, "IMAGE_ASSETS_HOME": str(new)}))
    moved = ModelRegistry(tracking_uri=f"sqlite:///{new / 'mlflow.db'}")
    moved.require_files_as_logged(moved.version(version.version))
    mlflow.set_tracking_uri(moved.tracking_uri)
    answer = mlflow.pyfunc.load_model(version.uri).predict(pd.DataFrame({"path": ["/x.png"]}))
    assert answer["label"].tolist() == ["ball"]
    with contextlib.closing(sqlite3.connect(new / "mlflow.db")) as database:
        texts = "\n".join(line for line in database.iterdump() if line.startswith("INSERT"))
    assert home.as_uri() not in texts
    assert new.as_uri() in texts


def test_a_home_with_images_and_tables_on_s3_is_moved(home: Path, tmp_path: Path) -> None:
    place = {"IMAGE_ASSETS_LANDING": "s3://bucket/photographs", "IMAGE_ASSETS_STORAGE": "s3://bucket/tables"}
    create_home(home)
    stamp(home)
    write_landing(home, place["IMAGE_ASSETS_LANDING"])
    main(tmp_path / "new", {**place, "IMAGE_ASSETS_HOME": str(home)})
    require_usable(tmp_path / "new")
    assert read_landing(tmp_path / "new") == place["IMAGE_ASSETS_LANDING"]


def test_a_home_without_images_or_models_is_moved(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    main(tmp_path / "empty", variables)
    require_usable(tmp_path / "empty")


def test_a_home_where_it_belongs_is_left_alone(variables: dict[str, str], home: Path) -> None:
    before = read_record(home)
    main(None, variables)
    assert read_record(home) == before


def test_a_new_place_must_be_empty_and_apart(variables: dict[str, str], home: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="which is not empty: name a new folder"):
        main(tmp_path / "full", variables)
    for overlapping in (home / "inside", tmp_path):
        with pytest.raises(ValueError, match="one contains the other"):
            main(overlapping, variables)
    with pytest.raises(ValueError, match=r"IMAGE_ASSETS_CACHES names .*unset it, then move the home"):
        main(tmp_path / "new", {**variables, "IMAGE_ASSETS_CACHES": str(home / "caches")})
    with pytest.raises(ValueError, match="There is no home in"):
        main(tmp_path / "new", {"IMAGE_ASSETS_HOME": str(tmp_path / "nothing")})
    require_usable(home)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGE_ASSETS_LINK_ROOTS", "{home}/.., {home}/landing/pool"),
        ("IMAGE_ASSETS_LABELS", "{home}/*.csv"),
        ("IMAGE_ASSETS_BACKBONE", "{home}/weights"),
        ("IMAGE_ASSETS_ALERT_RULES", "{home}/rules.yaml"),
        ("MLFLOW_TRACKING_URI", "sqlite:///{home}/mlflow.db"),
    ],
)
def test_a_home_that_a_setting_leads_into_is_not_moved(
    variables: dict[str, str], home: Path, tmp_path: Path, name: str, value: str
) -> None:
    (home / "landing" / "pool").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{name} names .*, which is in the home .*: unset it, then move the home"):
        main(tmp_path / "new", {**variables, name: value.format(home=home)})
    require_usable(home)


def test_a_setting_that_leads_into_a_home_with_a_comma_in_its_name_is_found(tmp_path: Path) -> None:
    home = tmp_path / "a,b"
    with pytest.raises(ValueError, match=r"IMAGE_ASSETS_STORAGE names .*a,b/storage, which is in the home"):
        require_unnamed(home, {"IMAGE_ASSETS_STORAGE": f"{home}/storage"})


def test_a_home_in_which_the_command_runs_is_moved_with_the_weights_of_a_source(
    variables: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    main(tmp_path / "new", {**variables, "IMAGE_ASSETS_BACKBONE": "imagenet"})
    require_usable(tmp_path / "new")


def test_a_home_with_a_password_in_its_landing_folder_stays_where_it_is(
    variables: dict[str, str], home: Path, tmp_path: Path
) -> None:
    write_landing(home, "sftp://ann:tOps3cret@host/photos")
    with pytest.raises(ValueError, match=r"was made for a landing folder whose address contains a password"):
        main(tmp_path / "new", variables)
    assert home.is_dir()


def test_the_command_to_run_next_can_be_pasted(
    variables: dict[str, str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tmp_path / "a new place", variables)
    assert f"Set IMAGE_ASSETS_HOME='{tmp_path}/a new place' from now on." in capsys.readouterr().out
    shutil.copytree(tmp_path / "a new place", home)
    with pytest.raises(ValueError, match=f"with IMAGE_ASSETS_HOME='{home}' once"):
        require_usable(home)


def test_a_home_in_use_is_not_moved(variables: dict[str, str], home: Path, tmp_path: Path) -> None:
    with used_by_another_process(home), pytest.raises(HomeInUse, match="is in use by another process"):
        main(tmp_path / "new", variables)
    assert home.is_dir()
    assert not (tmp_path / "new").exists()


def test_a_move_that_was_killed_after_the_rename_is_completed(
    variables: dict[str, str], home: Path, tmp_path: Path
) -> None:
    home.rename(tmp_path / "new")
    with pytest.raises(ValueError, match="was moved or copied from"):
        require_usable(tmp_path / "new")
    main(tmp_path / "new", variables)
    require_usable(tmp_path / "new")


def test_a_move_to_another_disk_removes_the_original(variables: dict[str, str], home: Path, other_disk: Path) -> None:
    (home / "tables").mkdir()
    (home / "tables" / "file").write_text("content")
    main(other_disk / "new", variables)
    assert not home.exists()
    require_usable(other_disk / "new")
    assert (other_disk / "new" / "tables" / "file").read_text() == "content"
    assert [entry.name for entry in other_disk.iterdir()] == ["new"]


def test_a_move_to_another_disk_that_was_killed_while_it_copied_starts_again(
    variables: dict[str, str], home: Path, other_disk: Path
) -> None:
    unfinished(other_disk / "new").mkdir()
    (unfinished(other_disk / "new") / "part").touch()
    with contextlib.chdir(home), socket.socket(socket.AF_UNIX) as left:
        left.bind(SOCKET_FILE)  # it stays when a run worker is killed
    require_usable(home)
    main(other_disk / "new", variables)
    assert not (other_disk / "new" / "part").exists()
    assert not home.exists()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_move_to_another_disk_that_was_killed_after_it_copied_is_completed(
    renamed: bool, variables: dict[str, str], home: Path, other_disk: Path
) -> None:
    new = other_disk / "new"
    copy(home, new)
    if not renamed:
        new.rename(unfinished(new))
    with pytest.raises(ValueError, match=rf"was moved to {new}.*move-home {new}` again"):
        require_usable(home)
    main(new, variables)
    assert not home.exists()
    require_usable(new)


def run_move_home(home: Path) -> None:
    """Completes the move of a home that was moved or copied by hand, as users do."""
    environment = {**os.environ, "IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_SPARK_MASTER": "local[1]"}
    environment.pop("IMAGE_ASSETS_LANDING", None)
    command = [sys.executable, "-m", "scripts", "move-home"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.spark
@pytest.mark.slow
def test_a_copied_home_with_its_images_reads_nothing_of_the_original_and_predicts_nothing_again(
    ingested: Ingested, delta_spark: DeltaSpark, home: Path, empty_store: Path
) -> None:
    shutil.copytree(ingested.home, home)
    write_record(home, HomeRecord(str(ingested.home)))
    write_landing(home, home / "landing")
    shutil.copy(empty_store, home / "mlflow.db")
    registry = ModelRegistry(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    mlflow.MlflowClient(registry.tracking_uri, registry.tracking_uri).create_registered_model(registry.name)
    registry.promote(logged_version(registry, home).version, "Production")
    tables, folder = tables_in(home, delta_spark), ImageFolder(root=str(home / "landing"), settle_seconds=0)
    with home_instance(home) as instance:
        assert run_predictions(tables, registry, instance).success
    predicted = columns(tables, ["path", "image_id", "predicted_at"])
    # An image that no table has followed yet.
    content = png(99)
    file = landed(home / "landing", "ball/new.png", content, 99)
    former = f"file:{ingested.home}/landing"
    append(tables, IMAGE_FILES, [file | {"path": f"{former}/ball/new.png"}])
    image = {name: file[name] for name in ("image_id", "length", "modification_time")}
    append(tables, RAW_IMAGES, [image | {"path": f"{former}/ball/new.png", "content": content}])
    os.utime(home / "landing" / "ball" / "new.png", (file["modification_time"].timestamp(),) * 2)

    run_move_home(home)

    require_usable(home)
    for table in TABLES:
        if "path" in table.columns.fieldNames():
            paths = tables.read(table, ["path"])["path"].to_pylist()
            assert all(path.startswith(f"file:{home}/landing/") for path in paths), table.name
    assert columns(tables, ["path", "image_id", "predicted_at"]) == {
        (path.replace(former, f"file:{home}/landing"), *rest) for path, *rest in predicted
    }
    follow_raw_images(tables, folder)
    follow_featured_images(tables)
    rows = tables.read(FEATURED_IMAGES, ["path", "image_id"]).to_pylist()
    assert len(rows) == 17
    assert {"path": f"file:{home}/landing/ball/new.png", "image_id": sha256(content).hexdigest()} in rows
    with home_instance(home) as instance:
        assert run_predictions(tables, registry, instance).success
    assert len(columns(tables, ["path"])) == len(predicted) + 1  # that of the new image
    assert [result.rule for result in audit(tables, folder) if result.broken] == []


def columns(delta_tables: DeltaTables, names: list[str]) -> set[tuple]:
    """The predictions' columns."""
    return {tuple(row.values()) for row in delta_tables.read(IMAGE_PREDICTIONS, names).to_pylist()}
