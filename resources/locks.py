"""Locks between the processes of one machine, on files and folders."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Locks a folder or a file, which is created if necessary, exclusively or shared.

    The lock is on the folder or file itself: it survives a rename, and ends with the process.

    Yields:
        Whether the lock was acquired, which it always is with `wait`.

    Raises:
        OSError: The file system has no locks.
    """
    # NFS locks a file exclusively only for those who may write to it; sharing it must work on a read-only disk, too.
    file = os.O_CREAT | (os.O_RDONLY if shared else os.O_RDWR)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else file, 0o600)
    try:
        acquired = acquire(
            descriptor, path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        )
        try:
            yield acquired
        finally:
            if acquired:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing it is not enough: child processes may have it open
    finally:
        os.close(descriptor)


def acquire(descriptor: int, path: Path, operation: int) -> bool:
    """Locks an open file; returns whether that was possible without waiting."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(
            error.errno, f"file locks do not work here ({error.strerror}): move it to a local disk", str(path)
        ) from error
    return True
