"""Dagster's SQLite databases in the home, without a wait for the disk after each of a run's thousand small commits.

Dagster opens and closes a database for every event. Each commit waits until the disk has it, and the last connection
that is closed moves all of it into the database file, which waits again. Here, commits wait no more, and one connection
to each database stays open. A killed process loses nothing; a power failure may lose the last events, but damages
nothing: SQLite writes its log in order.
"""

import atexit
import sqlite3
from collections import OrderedDict
from functools import cache
from pathlib import Path
from threading import Lock

from sqlalchemy import event
from sqlalchemy.engine import Engine

KEPT_OPEN = 8  # connections: a long-lived process has many runs, each with its own database


@cache
def write_without_waiting(folder: Path) -> None:
    """Applies this to all databases in Dagster's folder that this process opens from now on."""
    kept: OrderedDict[str, sqlite3.Connection] = OrderedDict()
    lock = Lock()

    @atexit.register
    def close() -> None:
        for connection in kept.values():
            connection.close()

    def keep_open(file: str) -> None:
        with lock:
            if file not in kept:
                kept[file] = sqlite3.connect(file, check_same_thread=False)
                if len(kept) > KEPT_OPEN:
                    kept.popitem(last=False)[1].close()
            kept.move_to_end(file)
            # A connection counts from its first query after the database got its log.
            kept[file].execute("SELECT count(*) FROM sqlite_master").fetchall()

    @event.listens_for(Engine, "connect")
    def configure(connection: object, _: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        if file and Path(file).is_relative_to(folder):
            connection.execute("PRAGMA synchronous=NORMAL")
            keep_open(file)
