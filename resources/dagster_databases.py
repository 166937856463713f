"""Makes Dagster's SQLite databases fast, although Dagster opens and closes one for every event.

Commits no longer wait for fsync (`synchronous=NORMAL`), and one open connection per database prevents a checkpoint at
every close. A killed process loses nothing; a power failure may lose the last events but corrupts nothing, because the
WAL stays consistent.
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

MAX_CONNECTIONS = 8  # kept open: a long-lived process has many runs, each with its own database

_connections: OrderedDict[str, sqlite3.Connection] = OrderedDict()
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
        if file not in _connections:
            _connections[file] = sqlite3.connect(file, check_same_thread=False)
            if len(_connections) > MAX_CONNECTIONS:
                _connections.popitem(last=False)[1].close()
        _connections.move_to_end(file)
        # A connection counts from its first query after the database got its log.
        _connections[file].execute("SELECT count(*) FROM sqlite_master").fetchall()


@atexit.register
def _close() -> None:
    for connection in _connections.values():
        connection.close()
