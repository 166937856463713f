"""A lock ends with its block."""

import os
from pathlib import Path

from resources.locks import locked


def test_a_child_that_still_has_the_file_open_holds_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "a lock"
    reading, writing = os.pipe()
    with locked(file):
        child = os.fork()
        if not child:
            os.read(reading, 1)  # until the other process has looked
            os._exit(0)
        with locked(file, wait=False) as acquired:
            assert not acquired
    try:
        with locked(file, wait=False) as acquired:
            assert acquired
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
