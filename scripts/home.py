"""The home folder, prepared before anything runs in it."""

import errno
import logging
import os
import time
import warnings
from pathlib import Path

import dagster as dg

from resources.dagster_databases import write_without_waiting
from resources.files.file_system import uncached_file_system
from resources.files.replacing import replace_text
from resources.home import (
    HomeInUse,
    create_home,
    in_use,
    read_landing,
    require_databases,
    require_usable,
    stamp,
    use_until_exit,
    write_landing,
)
from resources.setting_values import DATABASE_VARIABLE, stored_landing, to_location
from resources.settings import Settings, read_settings
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

    From here on, errors that end the process are explained on the terminal, and no other process can have the home for
    itself until this one ends.
    """
    explain_errors()
    settings = read_settings()
    prepare(settings)
    use_until_exit(settings.home)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    write_without_waiting(settings.dagster_home)
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
    """Creates the home's folders, records its place and landing folder, and writes Dagster's settings.

    Raises:
        HomeInUse: Another process has the home for itself, or it must be moved aside while another process uses it.
        OSError: The home is not writable.
        ValueError: The home belongs to another landing folder, to a newer version, or to another place.
    """
    try:
        create_home(settings.home)
        if not os.access(settings.home, os.W_OK):
            read_only = os.statvfs(settings.home).f_flag & os.ST_RDONLY
            raise PermissionError(0, os.strerror(errno.EROFS if read_only else errno.EACCES))
        require_usable(settings.home)
        require_databases(settings.home)
        if belongs_to_another(settings):
            move_aside(settings)
        with in_use(settings.home):
            create_folders(settings)
            write_landing(settings.home, settings.landing)
            stamp(settings.home)
            write_dagster_settings(settings)
    except HomeInUse:
        raise
    except OSError as error:
        raise OSError(
            f"Cannot write to the home folder {settings.home} ({error.strerror}). Make it writable for this account, "
            "or set IMAGE_ASSETS_HOME to another one."
        ) from error


def create_folders(settings: Settings) -> None:
    """Creates the folders that must exist before anything runs."""
    settings.dagster_home.mkdir(exist_ok=True)
    if settings.storage == settings.home:
        (settings.home / "mlartifacts").mkdir(exist_ok=True)


def belongs_to_another(settings: Settings) -> bool:
    """Whether the home has tables of another landing folder, whose images must never be mixed with those of this."""
    landing = read_landing(settings.home)
    return landing is not None and to_location(landing) != settings.landing and has_tables(settings)


def move_aside(settings: Settings) -> None:
    """Renames a home of generated sample images, so that one of the named landing folder can take its place.

    Raises:
        HomeInUse: Another process uses the home.
        ValueError: The home is not one of sample images.
    """
    landing = stored_landing(settings.home)
    if landing != str(settings.home / "landing") or settings.storage != settings.home:
        raise ValueError(
            f"{settings.storage} holds the tables of {landing}, not of {settings.landing}. Set IMAGE_ASSETS_HOME to "
            "another folder."
        )
    with in_use(settings.home, alone=True):
        if not belongs_to_another(settings):  # another process has moved it meanwhile
            return
        aside = settings.home.with_name(f"{settings.home.name}-samples-{time.strftime('%Y%m%d-%H%M%S')}")
        settings.home.rename(aside)
        create_home(settings.home)
    print(f"Moved the tables of the sample images to {aside}", flush=True)


def has_tables(settings: Settings) -> bool:
    """Whether anything was ever ingested."""
    system, tables = uncached_file_system(f"{settings.storage}/tables")
    return system.exists(tables)


def write_dagster_settings(settings: Settings) -> None:
    """Writes dagster.yaml into the home; it names the variable with the database's address, not the address."""
    content = DAGSTER_SETTINGS.read_text() + (POSTGRES if settings.dagster_on_postgres else "")
    file = settings.dagster_home / "dagster.yaml"
    if not file.is_file() or file.read_text() != content:
        replace_text(file, content)
