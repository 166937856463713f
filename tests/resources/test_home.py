"""A home knows where it is and which version opened it, and one process can have it for itself."""

import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import spark_session
from resources.home import (
    FORMAT,
    RECORD_FILE,
    HomeInUse,
    create_home,
    in_use,
    read_landing,
    require_usable,
    stamp,
    write_landing,
)
from scripts.runs import failures
from tests.support.homes import used_by_another_process
from tests.support.tables import SHELLS


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_a_new_home_is_readable_by_its_owner_only(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        create_home(tmp_path / "parent" / "home")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "parent" / "home").stat().st_mode) == 0o700


def test_an_existing_home_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    create_home(tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755


def test_a_home_of_a_newer_format_is_refused_with_both_versions(home: Path) -> None:
    create_home(home)
    stamp(home)
    record = json.loads((home / RECORD_FILE).read_text())
    (home / RECORD_FILE).write_text(json.dumps({**record, "format": FORMAT + 1, "version": "9.1.0", "later": "x"}))
    with pytest.raises(ValueError, match=rf"opened by image-assets 9\.1\.0 \(home format {FORMAT + 1}\).*Upgrade"):
        require_usable(home)


def test_a_home_of_the_same_format_or_without_a_record_is_accepted(home: Path) -> None:
    create_home(home)
    require_usable(home)
    (home / RECORD_FILE).write_text(json.dumps({"path": str(home), "format": FORMAT, "version": "9.1.0"}))
    require_usable(home)


def test_a_damaged_record_is_named(home: Path) -> None:
    create_home(home)
    (home / RECORD_FILE).touch()
    with pytest.raises(ValueError, match=r"home\.json is damaged .*backup"):
        require_usable(home)


def test_a_copied_home_is_refused_until_it_is_adopted(home: Path, tmp_path: Path) -> None:
    create_home(home)
    stamp(home)
    shutil.copytree(home, tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"copied from {home}.*move-home` with IMAGE_ASSETS_HOME={tmp_path}/copy"):
        require_usable(tmp_path / "copy")
    require_usable(home)


def test_a_copy_of_a_home_without_a_record_is_recognized_by_its_landing_folder(home: Path, tmp_path: Path) -> None:
    (home / "landing").mkdir(parents=True)
    (home / "landing_folder").write_text(f"{home / 'landing'}\n")
    require_usable(home)
    shutil.copytree(home, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"copied from {home}"):
        require_usable(tmp_path / "copy")
    assert read_landing(tmp_path / "copy") == str(tmp_path / "copy" / "landing")


def test_a_copy_of_a_home_without_a_record_is_recognized_by_its_registry(home: Path, tmp_path: Path) -> None:
    (home / "mlartifacts").mkdir(parents=True)
    (home / "landing_folder").write_text("/photographs\n")
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
        database.execute("INSERT INTO experiments VALUES ('image_assets', ?)", ((home / "mlartifacts").as_uri(),))
        database.commit()
    require_usable(home)
    shutil.copytree(home, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"copied from {home}"):
        require_usable(tmp_path / "copy")


@pytest.mark.parametrize("landing", ["landing", "photographs/new", "new "])
def test_a_landing_folder_inside_the_home_moves_with_it(landing: str, home: Path, tmp_path: Path) -> None:
    create_home(home)
    write_landing(home, home / landing)
    home.rename(tmp_path / "moved")
    assert read_landing(tmp_path / "moved") == str(tmp_path / "moved" / landing)


@pytest.mark.parametrize("landing", [Path("/photographs"), Path("/photographs "), "s3://bucket/photographs"])
def test_a_landing_folder_elsewhere_stays(landing: Path | str, home: Path, tmp_path: Path) -> None:
    create_home(home)
    assert read_landing(home) is None
    write_landing(home, landing)
    home.rename(tmp_path / "moved")
    assert read_landing(tmp_path / "moved") == str(landing)


def test_two_processes_use_a_home_together_but_none_alone_meanwhile(home: Path) -> None:
    with used_by_another_process(home):
        with in_use(home):
            pass
        with pytest.raises(HomeInUse, match="in use by another process, such as `make dev`"), in_use(home, alone=True):
            pass
    with in_use(home, alone=True):
        pass


def test_a_home_that_another_process_needs_alone_is_refused_after_a_while(home: Path) -> None:
    with (
        used_by_another_process(home, "alone"),
        pytest.raises(HomeInUse, match="reserved by another process"),
        in_use(home, wait_seconds=0.5),
    ):
        pass


def test_uses_of_one_process_can_be_nested(home: Path) -> None:
    with in_use(home), in_use(home, alone=True):
        pass
    with in_use(home, alone=True):
        pass


@dg.op
def write(delta_tables: DeltaTables) -> None:
    """Writes nothing."""


def run_of(instance: dg.DagsterInstance, home: Path) -> dg.ExecuteInProcessResult:
    """A run with the tables of the home."""

    @dg.job(resource_defs={"delta_tables": tables_of(home)})
    def writing() -> None:
        write()

    return writing.execute_in_process(instance=instance, raise_on_error=False)


def root_message(run: dg.ExecuteInProcessResult) -> str:
    """The message of the error that kept a run from starting."""
    (message,) = failures(run)
    return message


def tables_of(home: Path) -> DeltaTables:
    session = spark_session("local[1]", scratch=str(home / "spark"))  # never started
    return DeltaTables(pyspark=session, root=str(home / "tables"), home=str(home))


def test_a_run_of_another_dagster_instance_needs_the_home_alone(home: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_of(instance, home).success
        with used_by_another_process(home):
            refused = run_of(instance, home)
    assert f"The home {home} is in use by another process" in root_message(refused)


def test_runs_of_the_homes_own_dagster_instance_take_turns_by_its_pools(home: Path) -> None:
    (home / "dagster").mkdir(parents=True)
    with (
        dg.DagsterInstance.local_temp(str(home / "dagster"), overrides={"telemetry": {"enabled": False}}) as instance,
        used_by_another_process(home),
    ):
        assert run_of(instance, home).success


def test_reading_the_tables_outside_of_a_run_locks_nothing(home: Path) -> None:
    with used_by_another_process(home, "alone"), dg.build_resources({"delta_tables": tables_of(home)}) as opened:
        assert opened.delta_tables.home == str(home)


@pytest.mark.parametrize(("content", "words"), [("", "is empty"), ('{"add": {"pa', "is cut off")])
def test_a_run_on_a_table_whose_newest_commit_is_damaged_is_refused(content: str, words: str, home: Path) -> None:
    tables_of(home).create(SHELLS)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_of(instance, home).success
        (home / "tables" / "shells" / "_delta_log" / f"{1:020}.json").write_text(content)
        refused = run_of(instance, home)
    assert f"The table shells is damaged: its newest commit {home}/tables/shells" in root_message(refused)
    assert f"{words}. Launch the job repair_tables" in root_message(refused)
