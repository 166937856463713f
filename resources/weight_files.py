"""Where the weights of backbones come from: a named source, or a folder with weight files."""

from collections.abc import Sequence
from pathlib import Path

SOURCES = ("auto", "imagenet", "none")  # anything else is a folder
LISTED_FILES = 10


def weights_file(folder: str, names: Sequence[str]) -> Path:
    """The first file in the folder that has one of the names.

    Raises:
        FileNotFoundError: There is none; the message lists what the folder holds instead.
    """
    for name in names:
        if (file := Path(folder) / name).is_file():
            return file
    there = sorted(entry.name for entry in Path(folder).glob("*"))
    found = f"holds {', '.join(there[:LISTED_FILES]) or 'nothing'}" if Path(folder).is_dir() else "is not a folder"
    raise FileNotFoundError(
        f"IMAGE_ASSETS_BACKBONE is {folder}, which {found}: expected a folder with {' or '.join(names)}, or one of "
        f"{', '.join(SOURCES)}"
    )
