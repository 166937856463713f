"""A local PostgreSQL server in a temporary folder, if its programs are installed."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.cluster import HOST, free_port, wait_until_open

PASSWORD = "a-password-that-nobody-may-see"
DEBIAN = Path("/usr/lib/postgresql")
FAST = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB"]


def programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`: on the PATH, or Debian's newest."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max((folder for folder in DEBIAN.glob("*/bin") if (folder / "initdb").exists()), default=None)


def account() -> str | None:
    """Return the user who runs the server, because PostgreSQL refuses root; None for the current user."""
    if os.getuid() != 0:
        return None
    users = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


@contextmanager
def postgres_server(*databases: str) -> Iterator[Mapping[str, str]]:
    """Run a server with empty databases, and yield their addresses by name."""
    import psycopg2

    folder = programs()
    assert folder is not None
    user, port = account(), free_port()
    with TemporaryDirectory(prefix="postgres") as place:
        secret = Path(place, "password")
        secret.write_text(PASSWORD)
        if user:
            for owned in (Path(place), secret):
                shutil.chown(owned, user)
        data = f"{place}/data"
        new = ["--pgdata", data, "--username", "owner", "--auth", "scram-sha-256", "--pwfile", str(secret), "--no-sync"]
        command = [folder / "initdb", *new, "--encoding", "UTF8", "--no-locale"]
        subprocess.run(command, user=user, cwd=place, check=True, stdout=subprocess.DEVNULL)
        serve = [folder / "postgres", "-D", data, "-h", HOST, "-p", str(port), "-k", "", *FAST]
        with Path(place, "log").open("ab") as log, subprocess.Popen(serve, user=user, cwd=place, stderr=log) as server:
            try:
                wait_until_open(port)
                connection = psycopg2.connect(
                    host=HOST, port=port, user="owner", password=PASSWORD, dbname="postgres", connect_timeout=30
                )
                connection.autocommit = True
                for name in databases:
                    connection.cursor().execute(f"CREATE DATABASE {name}")
                connection.close()
                yield {name: f"postgresql+psycopg2://owner:{PASSWORD}@{HOST}:{port}/{name}" for name in databases}
            finally:
                server.send_signal(signal.SIGINT)  # at once: it would wait for its clients otherwise
