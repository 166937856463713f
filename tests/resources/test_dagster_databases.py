"""Dagster's databases in the home: no wait for the disk, and nothing lost when the process is killed."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from resources.dagster_databases import MAX_CONNECTIONS, write_without_waiting

PROGRAM = """
import os, sys
from pathlib import Path
import dagster as dg
from resources.dagster_databases import write_without_waiting

write_without_waiting(Path(sys.argv[1]))

@dg.asset
def shells():
    pass

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    dg.materialize([shells], instance=instance)
    os.kill(os.getpid(), 9)
"""


def synchronous(file: Path) -> int:
    """How a new connection of SQLAlchemy waits for the disk: 1 only for checkpoints, 2 after each commit."""
    with create_engine(f"sqlite:///{file}", poolclass=NullPool).begin() as connection:
        connection.execute(text("PRAGMA journal_mode=WAL"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS shells (name)"))
        connection.execute(text("INSERT INTO shells VALUES ('cowrie')"))
        return connection.execute(text("PRAGMA synchronous")).scalar_one()


def test_only_databases_in_the_folder_write_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "dagster").mkdir()
    write_without_waiting(tmp_path / "dagster")
    assert synchronous(tmp_path / "dagster" / "index.db") == 1
    assert synchronous(tmp_path / "mlflow.db") == 2


def test_closing_a_database_leaves_its_log_for_later(tmp_path: Path) -> None:
    """Moving it into the database file waits for the disk twice."""
    write_without_waiting(tmp_path)
    for _ in range(2):
        synchronous(tmp_path / "index.db")
    assert (tmp_path / "index.db-wal").stat().st_size > 0


def test_few_connections_stay_open(tmp_path: Path) -> None:
    write_without_waiting(tmp_path)
    for number in range(3 * MAX_CONNECTIONS):
        for _ in range(2):
            synchronous(tmp_path / f"{number}.db")
    assert len(list(tmp_path.glob("*.db-wal"))) == MAX_CONNECTIONS


def test_the_events_of_a_killed_process_are_there(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()[-2000:]
    (index,) = tmp_path.rglob("index.db")
    with sqlite3.connect(index) as connection:
        events = "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        assert connection.execute(events).fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("folder", ["", "dagster"])
def test_databases_in_memory_are_left_alone(tmp_path: Path, folder: str) -> None:
    write_without_waiting(tmp_path / folder)
    with create_engine("sqlite://").begin() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
