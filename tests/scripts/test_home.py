"""The home folder is tied to its landing folder, and never moved aside while another process uses it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resources.home import HomeInUse, write_landing
from resources.settings import Settings, read_settings
from scripts.home import prepare
from tests.support.homes import ROOT, used_by_another_process

NOT_UTF_8 = os.fsdecode(b"caf\xe9")


def settings(home: Path, landing: Path | None = None) -> Settings:
    """The settings of a command with these variables."""
    variables = {"IMAGE_ASSETS_HOME": str(home)} | ({"IMAGE_ASSETS_LANDING": str(landing)} if landing else {})
    return read_settings(variables)


@pytest.mark.parametrize("name", ["photographs", "photographs ", "\nphotographs\n", NOT_UTF_8])
def test_a_home_remembers_its_landing_folder(name: str, tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home", tmp_path / name))
    (tmp_path / "home" / "tables").mkdir()
    prepare(settings(tmp_path / "home", tmp_path / name))
    assert settings(tmp_path / "home").landing == tmp_path / name
    assert (tmp_path / "home" / "dagster" / "dagster.yaml").is_file()


@pytest.mark.parametrize(("landing", "shown"), [("", "my home/landing"), (NOT_UTF_8, "caf\N{REPLACEMENT CHARACTER}")])
def test_the_command_says_where_the_home_is_and_how_dagster_finds_it(landing: str, shown: str, tmp_path: Path) -> None:
    home = tmp_path / "my home"
    command = [sys.executable, "-m", "scripts", "home"]
    named = str(tmp_path / landing) if landing else ""
    variables = {"IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": named, "PYTHONIOENCODING": "utf-8:strict"}
    output = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith(f"The home {home} is ready, for images in {tmp_path}/{shown}.")
    assert output.endswith(f"\nexport DAGSTER_HOME='{home}/dagster'\n")


def test_tables_of_two_landing_folders_are_not_mixed(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home", tmp_path / "photographs"))
    (tmp_path / "home" / "tables").mkdir()
    with pytest.raises(ValueError, match=r"photographs, not of .*other\. Set IMAGE_ASSETS_HOME"):
        prepare(settings(tmp_path / "home", tmp_path / "other"))


@pytest.mark.parametrize("landing", ["", "sftp://ann@host/photos"])
def test_a_home_with_a_password_in_its_landing_folder_is_rejected_without_repeating_it(
    tmp_path: Path, landing: str
) -> None:
    (tmp_path / "tables").mkdir()
    write_landing(tmp_path, "sftp://ann:tOps3cret@host/photos")
    with pytest.raises(ValueError, match=r"address contains a password.*IMAGE_ASSETS_HOME to a new folder") as raised:
        prepare(read_settings({"IMAGE_ASSETS_HOME": str(tmp_path), "IMAGE_ASSETS_LANDING": landing}))
    assert f"The home {tmp_path}" in str(raised.value)
    assert "ps3cret" not in str(raised.value)


def test_a_landing_folder_that_was_never_ingested_binds_nothing(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home", tmp_path / "misspelt"))
    prepare(settings(tmp_path / "home", tmp_path / "photographs"))
    assert settings(tmp_path / "home").landing == tmp_path / "photographs"


def test_a_home_of_sample_images_is_moved_aside_for_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(settings(tmp_path / "home"))
    (tmp_path / "home" / "tables").mkdir()
    prepare(settings(tmp_path / "home", tmp_path / "photographs"))
    assert not (tmp_path / "home" / "tables").exists()
    aside = [folder for folder in tmp_path.iterdir() if folder.name.startswith("home-samples-")]
    assert len(aside) == 1
    assert (aside[0] / "tables").is_dir()
    assert str(aside[0]) in capsys.readouterr().out


def test_a_home_of_sample_images_is_not_moved_aside_while_it_is_in_use(tmp_path: Path) -> None:
    home = tmp_path / "home"
    prepare(settings(home))
    (home / "tables").mkdir()
    with (
        used_by_another_process(home),
        pytest.raises(HomeInUse, match=r"in use by another process, such as `make dev`"),
    ):
        prepare(settings(home, tmp_path / "photographs"))
    assert (home / "tables").is_dir()
    assert settings(home).landing == home / "landing"
    prepare(settings(home, tmp_path / "photographs"))
    assert not (home / "tables").exists()


def test_a_new_home_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home"))
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_moved_home_keeps_its_own_landing_folder(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home"))
    (tmp_path / "home").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"moved or copied from .*home.*Run `image-assets move-home`"):
        prepare(settings(tmp_path / "moved"))
    assert settings(tmp_path / "moved").landing == tmp_path / "moved" / "landing"
    assert not (tmp_path / "home").exists()


def test_a_home_of_another_account_is_named_with_what_to_do(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home"))
    readable = tmp_path / "home"
    for folder in (readable, *readable.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    for file in readable.iterdir():
        file.chmod(file.stat().st_mode | 0o044)
    with pytest.raises(OSError, match=r"Cannot write to the home folder .*Make it writable for this account"):
        in_another_account(settings(readable))


def in_another_account(home: Settings) -> None:
    """Prepares the home as nobody, in a child process, whose error is raised here."""
    program = "import os, sys; from scripts.home import open_home; os.setgid(65534); os.setuid(65534); open_home()"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "IMAGE_ASSETS_HOME": str(home.home), "IMAGE_ASSETS_LANDING": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in answer.stderr
    if answer.returncode:
        raise OSError(answer.stderr)


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 2\0"])
def test_a_damaged_registry_is_named_with_what_is_lost_without_a_backup(content: bytes, tmp_path: Path) -> None:
    prepare(settings(tmp_path))
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(ValueError, match=r"mlflow\.db is damaged: it is .*backup.*The registry is then empty"):
        prepare(settings(tmp_path))


def test_a_damaged_database_of_dagster_is_named(tmp_path: Path) -> None:
    prepare(settings(tmp_path))
    runs = tmp_path / "dagster" / "history" / "runs.db"
    runs.parent.mkdir()
    runs.touch()
    prepare(settings(tmp_path))  # Dagster fills an empty file
    runs.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"runs\.db is damaged.*history of runs is then empty; tables and models stay"):
        prepare(settings(tmp_path))


TURN = """
import sys
from resources.settings import read_settings
from scripts.demo import wait_for_turn
wait_for_turn(read_settings())
print("my turn", flush=True)
input()
"""


def test_the_second_of_two_demos_says_that_it_waits_for_the_first(tmp_path: Path) -> None:
    def demo() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TURN],
            cwd=ROOT,
            env={**os.environ, "IMAGE_ASSETS_HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with demo() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "my turn\n"
        with demo() as second:
            assert second.stdout is not None
            assert second.stdout.readline() == (f"Another `make demo` is using {tmp_path}; waiting for it to finish\n")
            first.communicate("\n")
            assert second.stdout.readline() == "my turn\n"
            second.communicate("\n")


def test_a_home_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write .*IMAGE_ASSETS_HOME"):
        prepare(settings(tmp_path / "file" / "home"))


def test_dagsters_settings_name_only_the_variable_of_the_database(tmp_path: Path) -> None:
    address = "postgresql+psycopg2://me:secret@database/dagster"
    prepare(read_settings({"IMAGE_ASSETS_HOME": str(tmp_path), "IMAGE_ASSETS_DAGSTER_DATABASE": address}))
    content = yaml.safe_load((tmp_path / "dagster" / "dagster.yaml").read_text())
    assert content["storage"] == {"postgres": {"postgres_url": {"env": "IMAGE_ASSETS_DAGSTER_DATABASE"}}}
    assert content["concurrency"]["pools"]["default_limit"] == 1
    prepare(settings(tmp_path))
    assert "storage" not in yaml.safe_load((tmp_path / "dagster" / "dagster.yaml").read_text())
