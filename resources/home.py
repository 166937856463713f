"""The home folder: where it is, which version opened it last, its landing folder, and who uses it right now."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from urllib.parse import unquote, urlsplit
from uuid import UUID

from resources.files.file_system import is_url
from resources.files.replacing import replace_bytes, replace_text
from resources.locks import locked

FORMAT = 1  # of a home; raise it when older versions must not open homes of this version anymore
RECORD_FILE = "home.json"
LANDING_FILE = "landing_folder"
LOCK_FILE = "lock"
SQLITE_START = b"SQLite format 3\0"
WAIT_SECONDS = 10  # for processes that need the home alone, most of them for a moment
MOVE_HOME = "image-assets move-home"

_held: set[Path] = set()  # by this process
_until_exit = ExitStack()


class HomeInUse(OSError):
    """Another process uses the home."""


@dataclass(frozen=True)
class HomeRecord:
    """What a home says about itself."""

    path: str  # where it was when its paths and URIs were written
    format: int = FORMAT
    version: str = ""  # of this project, when a command opened the home last
    moved_to: str = ""  # set once all files are there


def create_home(home: Path) -> None:
    """Creates the home, readable by its owner only; an existing folder keeps its mode."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)


def read_record(home: Path) -> HomeRecord | None:
    """The home's record; for a home that has none yet, what its landing folder and MLflow's database tell."""
    file = home / RECORD_FILE
    if file.is_file():
        try:
            found = json.loads(file.read_text())
            return HomeRecord(**{name: found[name] for name in HomeRecord.__dataclass_fields__ if name in found})
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}). Restore it from a backup, or delete it if the home was not moved or "
                "copied since it was opened last."
            ) from error
    former = former_path(home)
    return HomeRecord(str(former), format=0) if former else None


def write_record(home: Path, record: HomeRecord) -> None:
    """Replaces the home's record, if it changes."""
    if read_record(home) != record or not (home / RECORD_FILE).is_file():
        replace_text(home / RECORD_FILE, json.dumps(asdict(record), indent=2) + "\n")


def stamp(home: Path) -> None:
    """Records that this version opened the home, here."""
    write_record(home, HomeRecord(str(home), version=version("image-assets")))


def former_path(home: Path) -> Path | None:
    """Where a home without a record was, if it was moved or copied by hand; None if it was not, or nothing tells."""
    file, own = home / LANDING_FILE, home / "landing"
    landing = Path(stored_name(file)) if file.is_file() else own
    if own.is_dir() and landing.is_absolute() and landing.name == own.name and landing != own:
        return landing.parent
    database = home / "mlflow.db"
    if not (home / "mlartifacts").is_dir() or not database.is_file():
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for (location,) in connection.execute("SELECT artifact_location FROM experiments WHERE name = 'image_assets'"):
            folder = Path(unquote(urlsplit(str(location)).path))
            if folder.name == "mlartifacts" and folder.parent != home:
                return folder.parent
    return None


def require_known_format(home: Path) -> None:
    """Raises ValueError if a newer version of this project opened the home."""
    record = read_record(home)
    if record and record.format > FORMAT:
        raise ValueError(
            f"The home {home} was last opened by image-assets {record.version} (home format {record.format}), which is "
            f"newer than this version {version('image-assets')} (home format {FORMAT}). Upgrade image-assets, or set "
            "IMAGE_ASSETS_HOME to another folder."
        )


def require_usable(home: Path) -> None:
    """Raises ValueError if a newer version wrote the home, or if it was moved or copied and still names its old place.

    The paths in its tables and registry would lead to the files of the original.
    """
    require_known_format(home)
    record = read_record(home)
    if record is None:
        return
    if record.moved_to:
        raise ValueError(
            f"The home {home} was moved to {record.moved_to}. Set IMAGE_ASSETS_HOME={quote(record.moved_to)}, or run "
            f"`{MOVE_HOME} {quote(record.moved_to)}` again to remove what is left here."
        )
    if Path(record.path) != home:
        raise ValueError(
            f"The home {home} was moved or copied from {record.path}, and its tables and models still name files "
            f"there. Run `{MOVE_HOME}` with IMAGE_ASSETS_HOME={quote(str(home))} once: it makes them name the files "
            "here."
        )


def databases(home: Path) -> list[Path]:
    """The SQLite databases of the home: MLflow's, and those of Dagster that all runs share."""
    found = [home / "mlflow.db", *sorted((home / "dagster").glob("**/*.db"))]
    return [file for file in found if file.is_file() and not is_of_one_run(file)]


def is_of_one_run(file: Path) -> bool:
    """Whether a database of Dagster holds the events of a single run, which is its name."""
    try:
        UUID(file.stem)
    except ValueError:
        return False
    return True


def why_damaged(database: Path) -> str:
    """What is wrong with a SQLite database at first sight; empty if nothing is."""
    with database.open("rb") as file:
        start = file.read(len(SQLITE_START))
    if not start and database.name != "mlflow.db":
        return ""  # Dagster creates the tables of an empty file; of MLflow's, versions would be missing
    return "" if start == SQLITE_START else "it is empty" if not start else "it is not an SQLite database"


def require_databases(home: Path) -> None:
    """Raises ValueError if a database of the home is damaged."""
    for database in databases(home):
        if damage := why_damaged(database):
            raise ValueError(f"The database {database} is damaged: {damage}. {repair_of(database)}")


def repair_of(database: Path) -> str:
    """What to do about a damaged database."""
    if database.name == "mlflow.db":
        lost = "The registry is then empty, so train and promote again; tables and images stay"
    else:
        lost = "Dagster's history of runs is then empty; tables and models stay"
    return f"Restore it from a backup of the home. If there is none, move the file away and run again. {lost}."


def read_landing(home: Path) -> str | None:
    """The landing folder that the home belongs to; None if it was never opened.

    A folder inside the home is named relative to it, so that a copied home never names that of the original.
    """
    file = home / LANDING_FILE
    if not file.is_file():
        return None
    landing = stored_name(file)
    if is_url(landing):
        return landing
    record = read_record(home)
    if record and Path(landing).is_relative_to(record.path):  # written by a version that named it absolutely
        landing = str(Path(landing).relative_to(record.path))
    return str(home / landing)


def stored_name(file: Path) -> str:
    """The name in a landing folder's file. Names may end in spaces, or not be UTF-8."""
    return os.fsdecode(file.read_bytes()).removesuffix("\n")


def write_landing(home: Path, landing: Path | str) -> None:
    """Records the landing folder that the home belongs to, if it changes."""
    inside = isinstance(landing, Path) and landing.is_relative_to(home)
    content = os.fsencode(f"{landing.relative_to(home) if isinstance(landing, Path) and inside else landing}\n")
    file = home / LANDING_FILE
    if not file.is_file() or file.read_bytes() != content:
        replace_bytes(file, content)


@contextmanager
def in_use(home: Path, *, alone: bool = False, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Uses the home inside the block, together with other processes or alone; blocks of one process can be nested.

    Processes whose runs take turns, because they are in the home's own Dagster instance, use it together.

    Raises:
        HomeInUse: Another process uses the home alone, or at all if this one needs to be alone.
    """
    if home in _held:
        yield
        return
    create_home(home)
    with ExitStack() as stack:
        stop_waiting = time.monotonic() + wait_seconds
        while not stack.enter_context(locked(home / LOCK_FILE, shared=not alone, wait=False)):
            stack.close()
            if alone:
                raise HomeInUse(
                    f"The home {home} is in use by another process, such as `make dev`, `make demo` or a run. Stop it "
                    "or wait until it has finished, then run this command again."
                )
            if time.monotonic() > stop_waiting:
                raise HomeInUse(
                    f"The home {home} is reserved by another process: it is being moved, or a run of another Dagster "
                    "instance writes to it. Run this command again when that has finished."
                )
            time.sleep(0.2)
        _held.add(home)
        try:
            yield
        finally:
            _held.discard(home)


def use_until_exit(home: Path) -> None:
    """Uses the home, together with other processes, until this process ends."""
    _until_exit.enter_context(in_use(home))
