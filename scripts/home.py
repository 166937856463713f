"""The home folder, prepared before anything runs in it."""

import logging
import os
import time
import warnings
from pathlib import Path

import dagster as dg

from resources.files.file_system import uncached_file_system
from resources.settings import DATABASE_VARIABLE, Settings, read_settings, to_location
from scripts.terminal import explain_errors

DAGSTER_SETTINGS = Path(__file__).with_name("dagster.yaml")
POSTGRES = f"""
storage:
  postgres:
    postgres_url:
      env: {DATABASE_VARIABLE}
"""


def open_home() -> Settings:
    """Prepares the home that the settings name, for this process and its children, and returns the settings.

    From here on, errors that end the process are explained on the terminal.
    """
    explain_errors()
    settings = read_settings()
    prepare(settings)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    return settings


def hide_library_messages() -> None:
    """Hides warnings and progress bars of libraries that users can do nothing about."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # A library that configures the root logger would print every line of a run a second time.
    logging.getLogger("dagster").propagate = False
    warnings.simplefilter("ignore", dg.BetaWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    warnings.filterwarnings("ignore", message=".*input example was not provided")  # would store images a second time


def prepare(settings: Settings) -> None:
    """Creates the home's folders, records its landing folder and writes Dagster's settings."""
    try:
        settings.dagster_home.mkdir(parents=True, exist_ok=True)
        if settings.storage == settings.home:
            (settings.home / "mlartifacts").mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Cannot write to the home folder {settings.home} ({error.strerror}). Set IMAGE_ASSETS_HOME to another one."
        ) from error
    bind_landing(settings)
    write_dagster_settings(settings)


def bind_landing(settings: Settings) -> None:
    """Ties the home to its landing folder, so that tables never mix the images of two folders.

    If a home of generated sample images is opened with a real landing folder, it is moved aside and starts empty.

    Raises:
        ValueError: The home already has tables of another landing folder.
    """
    remembered = settings.remembered_landing
    before = to_location(remembered.read_text().strip()) if remembered.is_file() else settings.landing
    if before != settings.landing and has_tables(settings):
        if before != settings.home / "landing" or settings.storage != settings.home:
            raise ValueError(
                f"{settings.storage} holds the tables of {before}, not of {settings.landing}. Set IMAGE_ASSETS_HOME to "
                f"another folder, or delete {remembered} if the same files have moved."
            )
        aside = settings.home.with_name(f"{settings.home.name}-samples-{time.strftime('%Y%m%d-%H%M%S')}")
        settings.home.rename(aside)
        settings.dagster_home.mkdir(parents=True)
        (settings.home / "mlartifacts").mkdir()
        print(f"Moved the tables of the sample images to {aside}", flush=True)
    remembered.write_text(f"{settings.landing}\n")


def has_tables(settings: Settings) -> bool:
    """Whether anything was ever ingested."""
    system, tables = uncached_file_system(f"{settings.storage}/tables")
    return system.exists(tables)


def write_dagster_settings(settings: Settings) -> None:
    """Writes dagster.yaml into the home; it names the variable with the database's address, not the address."""
    content = DAGSTER_SETTINGS.read_text() + (POSTGRES if settings.dagster_on_postgres else "")
    file = settings.dagster_home / "dagster.yaml"
    if not file.is_file() or file.read_text() != content:
        file.write_text(content)
