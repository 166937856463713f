"""Moves a home to another folder, and makes it name its files there.

Tables hold the absolute paths of images, and MLflow's database the absolute URIs of models. A home's record says for
which place these are right; anywhere else, the home cannot be opened. Every step can be repeated: after an interruption
at any point, the same command completes the move.
"""

import errno
import filecmp
import json
import os
import shlex
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc

from image_assets.schemas import TABLES
from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table, parquet_settings, session_settings
from resources.files.file_system import to_path
from resources.home import (
    RECORD_FILE,
    HomeRecord,
    in_use,
    read_record,
    require_known_format,
    require_usable,
    stamp,
    write_landing,
    write_record,
)
from resources.run_launcher import SOCKET_FILE
from resources.setting_values import stored_landing, to_folder, to_patterns
from resources.settings import create_resources, read_settings
from resources.weight_files import SOURCES as WEIGHT_SOURCES
from scripts.home import hide_library_messages

# What MLflow's database says about places, by table and column.
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
SOURCES = {"model_versions": "source"}  # URIs of models or, in versions that older releases of MLflow registered, files
DATASETS = {"datasets": "dataset_source"}  # JSON
# The settings that name files and folders.
VARIABLES = (
    "IMAGE_ASSETS_STORAGE",
    "IMAGE_ASSETS_CACHES",
    "IMAGE_ASSETS_LANDING",
    "IMAGE_ASSETS_LINK_ROOTS",
    "IMAGE_ASSETS_LABELS",
    "IMAGE_ASSETS_BACKBONE",
    "IMAGE_ASSETS_ALERT_RULES",
    "MLFLOW_TRACKING_URI",
)


def main(new: Path | None, variables: Mapping[str, str] = os.environ) -> int:
    """Moves the home that the settings name, or completes its move; returns the exit code.

    Args:
        new: The folder to move it to, which must not exist or be empty. None for a home that was moved or copied by
            hand: it stays where it is.
        variables: The environment variables.
    """
    home = read_settings(variables).home
    new = home if new is None else new.expanduser().resolve()
    if new != home:
        require_unnamed(home, variables)
        stored_landing(home)  # raises before anything is moved: a stored password would end every later command
        relocate(home, new)
    adopt(new, variables)
    if new != home:
        remove_original(home, new)
    print(f"The home is {new}. Set IMAGE_ASSETS_HOME={shlex.quote(str(new))} from now on.", flush=True)
    return 0


def require_unnamed(home: Path, variables: Mapping[str, str]) -> None:
    """Raises ValueError if a variable names something in the home: it would still do so after the move."""
    for name in VARIABLES:
        for path in named_paths(name, variables.get(name) or ""):
            if to_folder(path).is_relative_to(home):
                raise ValueError(f"{name} names {path}, which is in the home {home}: unset it, then move the home")


def named_paths(name: str, value: str) -> tuple[str, ...]:
    """The local files and folders that the value of a variable names."""
    if name == "IMAGE_ASSETS_LINK_ROOTS":
        return to_patterns(value)
    path = value.strip().removeprefix("sqlite:///")
    is_source = name == "IMAGE_ASSETS_BACKBONE" and path in WEIGHT_SOURCES
    return () if not path or "://" in path or is_source else (path,)


def relocate(home: Path, new: Path) -> None:
    """Brings the home's files to the new place; does nothing if they are there.

    Raises:
        HomeInUse: Another process uses the home.
        ValueError: The new place is not empty or overlaps with the home, or there is no home.
    """
    record = read_record(new)
    if not home.exists() and record is not None and Path(record.path) == home:
        return  # renamed by a move that was interrupted
    if not home.is_dir():
        raise ValueError(f"There is no home in {home}: set IMAGE_ASSETS_HOME to the folder to move")
    if new.is_relative_to(home) or home.is_relative_to(new):
        raise ValueError(f"Cannot move {home} to {new}, because one contains the other: name another folder")
    with in_use(home, alone=True):
        moved_to = (read_record(home) or HomeRecord(str(home))).moved_to
        if moved_to != str(new):
            require_usable(home)
            if new.exists() and (not new.is_dir() or any(new.iterdir())):
                raise ValueError(f"Cannot move {home} to {new}, which is not empty: name a new folder")
        new.parent.mkdir(parents=True, exist_ok=True)
        if moved_to:
            install_copy(home, new)
            return
        if not (home / RECORD_FILE).is_file():
            stamp(home)  # the record travels with the home
        try:
            home.rename(new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy(home, new)


def copy(home: Path, new: Path) -> None:
    """Copies the home to another file system, compares every byte, and puts the copy in place."""
    part = unfinished(new)
    shutil.rmtree(part, ignore_errors=True)  # of a move that was interrupted
    print(f"Copying {home} to another file system…", flush=True)
    shutil.copytree(home, part, symlinks=True, ignore=shutil.ignore_patterns(SOCKET_FILE))
    if different := next(different_files(home, part), None):
        raise OSError(f"The copy of {different} differs from the original: check the disk of {new}, then try again")
    os.sync()  # the original must not go before the copy is on the disk
    record = read_record(home) or HomeRecord(str(home))
    write_record(home, replace(record, moved_to=str(new)))  # from here on, the copy counts
    install_copy(home, new)


def install_copy(home: Path, new: Path) -> None:
    """Renames the complete copy to the new place, unless it is there."""
    if unfinished(new).is_dir():
        with suppress(FileNotFoundError):
            new.rmdir()
        unfinished(new).rename(new)
    elif read_record(new) is None:
        raise ValueError(f"The copy of {home} in {new} is gone. Delete {home / RECORD_FILE} to use the original again")


def unfinished(new: Path) -> Path:
    """Where a copy is until it is complete."""
    return new.with_name(f".{new.name}.unfinished")


def different_files(home: Path, other: Path) -> Iterator[Path]:
    """The files of the home whose copy differs."""
    for file in sorted(home.rglob("*")):
        if file.is_file() and not file.is_symlink():
            copied = other / file.relative_to(home)
            if not copied.is_file() or not filecmp.cmp(file, copied, shallow=False):
                yield file


def adopt(home: Path, variables: Mapping[str, str] = os.environ) -> None:
    """Makes the home name its files where it is now; does nothing if it does.

    Raises:
        HomeInUse: Another process uses the home.
        ValueError: There is no home.
    """
    record = read_record(home)
    if not home.is_dir():
        raise ValueError(f"There is no home in {home}: set IMAGE_ASSETS_HOME to the folder to move")
    if record is None or Path(record.path) == home:
        return
    former = Path(record.path)
    require_known_format(home)
    print(f"Updating paths in {home} that still point to {former}…", flush=True)
    with in_use(home, alone=True):
        landing = stored_landing(home) or str(home / "landing")
        settings = read_settings({**variables, "IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_LANDING": landing})
        if settings.storage != home:
            print(f"Tables and models stay in {settings.storage}.", flush=True)
        if settings.tracking_uri == f"sqlite:///{home / 'mlflow.db'}":
            rewrite_registry(home / "mlflow.db", former, home)
        else:
            print(f"MLflow's data stays at {settings.tracking_uri}.", flush=True)
        if isinstance(settings.landing, Path) and settings.landing.is_relative_to(home):
            before = former / settings.landing.relative_to(home)
            hide_library_messages()
            with dg.build_resources({"delta_tables": create_resources(settings)["delta_tables"]}) as opened:
                rewrite_tables(opened.delta_tables, to_prefix(before), to_prefix(settings.landing))
            write_landing(home, settings.landing)
        stamp(home)


def remove_original(home: Path, new: Path) -> None:
    """Removes what a move to another file system leaves at the old place; its record last, which says that it may."""
    record = read_record(home) if home.is_dir() else None
    if record is None or record.moved_to != str(new):
        return
    for entry in home.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != RECORD_FILE:
            entry.unlink()
    shutil.rmtree(home)


def to_prefix(folder: Path) -> str:
    """How the paths of a folder's files begin in tables."""
    return f"{to_path(os.fsencode(folder))}/"


def rewrite_registry(database: Path, former: Path, home: Path) -> None:
    """Replaces the former place of the home in MLflow's database, in one transaction."""
    if not database.is_file():
        return
    moved = {as_text(former): as_text(home) for as_text in (str, Path.as_uri, "file://{}".format)}
    with closing(sqlite3.connect(database)) as connection, connection:
        existing = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for before, after in moved.items():
            for table, column in [*LOCATIONS.items(), *SOURCES.items()]:
                if table in existing:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (f"{after}/", len(before) + 2, len(before) + 1, f"{before}/"),
                    )
            for table, column in DATASETS.items():
                if table in existing:
                    texts = (json.dumps(f"{text}/")[:-1] for text in (before, after))
                    connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", tuple(texts))


def rewrite_tables(delta_tables: DeltaTables, before: str, after: str) -> None:
    """Replaces the beginning of paths in every table that has any, one commit a table.

    Followers see that paths were rewritten by the operation of these commits.
    """
    for table in TABLES:
        if "path" not in table.columns.fieldNames() or delta_tables.newest_version(table) is None:
            continue
        is_before = pc.starts_with(pc.field("path"), before)  # pyright: ignore[reportAttributeAccessIssue] - made at run time
        paths = delta_tables.read(table, ["path"], is_before)
        if len(paths):
            print(f"  {table.name}: {len(paths):,} paths", flush=True)
            rewrite_paths(delta_tables, table, before, after)


def rewrite_paths(delta_tables: DeltaTables, table: Table, before: str, after: str) -> None:
    """Replaces the beginning of a table's paths, in one commit."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    spark, path = delta_tables.spark, F.col("path")
    rest = path.substr(F.lit(len(before) + 1), F.length(path))
    with session_settings(spark, parquet_settings(table)):
        log = DeltaTable.forPath(spark, delta_tables.uri(table))
        log.update(path.startswith(before), {"path": F.concat(F.lit(after), rest)})
