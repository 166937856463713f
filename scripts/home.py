"""The home folder, made ready before anything runs in it."""

import logging
import os
import time
import warnings
from pathlib import Path

import dagster as dg

from resources.files.object_storage import fresh
from resources.settings import DATABASE_VARIABLE, Settings, read_settings, to_place
from scripts.sample_images import write_sample_images
from scripts.terminal import end_with_what_to_do

ROOT = Path(__file__).resolve().parent.parent
POSTGRES = f"""
storage:
  postgres:
    postgres_url:
      env: {DATABASE_VARIABLE}
"""


def prepared_home() -> Settings:
    """The settings, with their home folder made ready; what goes wrong from now on is told with what to do."""
    end_with_what_to_do()
    settings = read_settings()
    prepare(settings)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    return settings


def quiet() -> None:
    """Silence what libraries say that a person can do nothing about."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # A library that sets up logging for all would have each line of a run printed a second time.
    logging.getLogger("dagster").propagate = False
    warnings.simplefilter("ignore", dg.BetaWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    warnings.filterwarnings("ignore", message=".*input example was not provided")  # images would be kept a second time


def prepare(settings: Settings) -> None:
    """Make the home's folders, remember its landing folder, lay Dagster's settings in their place."""
    try:
        settings.dagster_home.mkdir(parents=True, exist_ok=True)
        if settings.storage == settings.home:
            (settings.home / "mlartifacts").mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the home folder {settings.home} cannot be written ({error.strerror}): "
            "name another one by IMAGE_ASSETS_HOME"
        ) from error
    remember_landing(settings)
    lay_dagster_settings(settings)


def lay_dagster_settings(settings: Settings) -> None:
    """Dagster's settings in its folder; they name the variable of its database, not what that says."""
    wanted = (ROOT / "dagster.yaml").read_text() + (POSTGRES if settings.dagster_on_postgres else "")
    current = settings.dagster_home / "dagster.yaml"
    if not current.is_file() or current.read_text() != wanted:
        current.write_text(wanted)


def remember_landing(settings: Settings) -> None:
    """Bind the home to its landing folder: tables of one folder are not mixed with another's by mistake.

    A home of sample images gives way to photographs: it is moved aside. ValueError for any other change.
    """
    remembered = settings.remembered_landing
    before = to_place(remembered.read_text().strip()) if remembered.is_file() else settings.landing
    if before != settings.landing and has_tables(settings):
        if before != settings.home / "landing" or settings.storage != settings.home:
            raise ValueError(
                f"{settings.storage} holds the tables of {before}, not of {settings.landing}: name another home by "
                f"IMAGE_ASSETS_HOME, or delete {remembered} if the same files have moved"
            )
        aside = settings.home.with_name(f"{settings.home.name}-samples-{time.strftime('%Y%m%d-%H%M%S')}")
        settings.home.rename(aside)
        settings.dagster_home.mkdir(parents=True)
        (settings.home / "mlartifacts").mkdir()
        print(f"The tables of the sample images were moved to {aside}", flush=True)
    remembered.write_text(f"{settings.landing}\n")


def has_tables(settings: Settings) -> bool:
    """Whether anything was ingested yet."""
    system, tables = fresh(f"{settings.storage}/tables")
    return system.exists(tables)


def write_samples_if_new(settings: Settings) -> None:
    """Generated sample images for a home that no folder of photographs was named for."""
    landing = settings.home / "landing"
    if settings.landing == landing and not landing.exists():
        print(f"Writing sample images to {landing}", flush=True)
        write_sample_images(landing)


if __name__ == "__main__":
    prepared_home()
