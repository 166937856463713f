"""Files that this project puts into the landing folder: there as a whole, or not at all."""

import shutil
from pathlib import Path
from typing import IO
from uuid import uuid4

from resources.object_storage import fresh, is_url

PART = ".fetching-"  # how a file is called before it is whole; listings pass over it


def put(root: str, below: str, file: IO[bytes]) -> None:
    """Lay the file at its place below the folder, in place of one that is there.

    OSError where it cannot be written, or where its folder is a link to somewhere else.
    """
    if is_url(root):
        system, path = fresh(f"{root}/{below}")
        with system.open(path, "wb") as whole:  # an object is there once it is closed
            shutil.copyfileobj(file, whole)
        return
    place = Path(root) / below
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.parent != Path(root) and place.parent.is_symlink():
        raise NotADirectoryError(f"{place.parent} is a link: expected a folder")
    part = place.with_name(f"{PART}{uuid4().hex}")
    try:
        with part.open("xb") as whole:
            shutil.copyfileobj(file, whole)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def is_there(root: str, below: str) -> bool:
    """Whether there is a file of this name, whatever it is."""
    if is_url(root):
        system, path = fresh(f"{root}/{below}")
        return system.exists(path)
    place = Path(root) / below
    return place.exists() or place.is_symlink()


def remove(root: str, below: str) -> None:
    """Remove the file, where it is still there."""
    if is_url(root):
        system, path = fresh(f"{root}/{below}")
        if system.exists(path):
            system.rm_file(path)
    else:
        (Path(root) / below).unlink(missing_ok=True)


def prepare(root: str) -> None:
    """Make the folder where there is none, and remove what runs left that were killed while they wrote."""
    if not is_url(root):
        Path(root).mkdir(parents=True, exist_ok=True)
        for part in (*Path(root).glob(f"{PART}*"), *Path(root).glob(f"*/{PART}*")):
            part.unlink(missing_ok=True)
