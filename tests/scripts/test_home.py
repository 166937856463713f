"""The home folder is tied to its landing folder."""

from pathlib import Path

import pytest
import yaml

from resources.settings import Settings, read_settings
from scripts.home import prepare


def settings(home: Path, landing: Path | None = None) -> Settings:
    """The settings of a command with these variables."""
    variables = {"IMAGE_ASSETS_HOME": str(home)} | ({"IMAGE_ASSETS_LANDING": str(landing)} if landing else {})
    return read_settings(variables)


def test_a_home_remembers_its_landing_folder(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home", tmp_path / "photographs"))
    assert settings(tmp_path / "home").landing == tmp_path / "photographs"
    assert (tmp_path / "home" / "dagster" / "dagster.yaml").is_file()


def test_tables_of_two_landing_folders_are_not_mixed(tmp_path: Path) -> None:
    prepare(settings(tmp_path / "home", tmp_path / "photographs"))
    (tmp_path / "home" / "tables").mkdir()
    with pytest.raises(ValueError, match=r"photographs, not of .*other\. Set IMAGE_ASSETS_HOME"):
        prepare(settings(tmp_path / "home", tmp_path / "other"))


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
