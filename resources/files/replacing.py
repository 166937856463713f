"""Files that are replaced in one step: readers find the old or the new one, even after a power failure."""

import os
from pathlib import Path
from uuid import uuid4


def replace_file(part: Path, file: Path) -> None:
    """Flushes a complete file to the disk, then renames it to the other one."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(file)


def replace_bytes(file: Path, content: bytes) -> None:
    """Replaces a file's content, or creates the file."""
    part = file.with_name(f".{file.name}-{uuid4().hex}")
    try:
        part.write_bytes(content)
        replace_file(part, file)
    finally:
        part.unlink(missing_ok=True)


def replace_text(file: Path, text: str) -> None:
    """The same for text."""
    replace_bytes(file, text.encode())
