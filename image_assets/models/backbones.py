"""Where a backbone's weights come from: a folder, or a download that does not wait for ever."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOWNLOAD_TIMEOUT_SECONDS = 10


def weights_file(folder: str, name: str) -> Path:
    """The file of that name in the folder; a FileNotFoundError says what lies there instead."""
    file = Path(folder) / name
    if not file.is_file():
        there = sorted(entry.name for entry in Path(folder).glob("*"))
        found = f"holds {', '.join(there[:10]) or 'nothing'}" if Path(folder).is_dir() else "is no folder"
        raise FileNotFoundError(
            f"{folder} {found}: expected a folder with {name}; name it in IMAGE_ASSETS_BACKBONE, "
            "or set that to auto, imagenet or none"
        )
    return file


@contextmanager
def download_timeout() -> Iterator[None]:
    """Connections that stay silent for some seconds fail: the frameworks' downloads name no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
