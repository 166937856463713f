"""Dagster's SQLite databases in the home, without a wait for the disk after each of a run's thousand small commits.

Dagster opens and closes a database for every event. Each commit waits until the disk has it, and the last connection
that is closed moves all of it into the database file, which waits again. Here, commits wait no more, and one connection
to each database stays open. A killed process loses nothing; a power failure may lose the last events, but damages
nothing: SQLite writes its log in order.
"""

import atexit
import sqlite3
from collections import OrderedDict
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

from sqlalchemy import event
from sqlalchemy.engine import Engine

KEPT_OPEN = 8  # connections: a long-lived process has many runs, each with its own database

_kept: OrderedDict[str, sqlite3.Connection] = OrderedDict()
_lock = Lock()


@cache
def write_without_waiting(folder: Path) -> None:
    """Applies this to all databases in Dagster's folder that this process opens from now on."""
    folder = folder.resolve()

    @event.listens_for(Engine, "connect")
    def configure(connection: object, _: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        if file and Path(file).resolve().is_relative_to(folder):
            connection.execute("PRAGMA synchronous=NORMAL")
            with suppress(sqlite3.Error):  # such as a database that is locked; the run's own connection decides
                _keep_open(file)


def _keep_open(file: str) -> None:
    with _lock:
        if file not in _kept:
            _kept[file] = sqlite3.connect(file, check_same_thread=False)
            if len(_kept) > KEPT_OPEN:
                _kept.popitem(last=False)[1].close()
        _kept.move_to_end(file)
        # A connection counts from its first query after the database got its log.
        _kept[file].execute("SELECT count(*) FROM sqlite_master").fetchall()


@atexit.register
def _close() -> None:
    for connection in _kept.values():
        connection.close()
