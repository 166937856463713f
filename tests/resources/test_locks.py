"""A lock ends with its block."""

import errno
import os
from pathlib import Path

import pytest

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


def test_a_file_system_without_locks_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="file locks do not work here .*: move it to a local disk"), locked(tmp_path):
        pass
    assert tmp_path.resolve() not in [opened.resolve() for opened in Path("/proc/self/fd").iterdir()]
