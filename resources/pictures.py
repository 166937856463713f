"""Pictures in metadata as files of the home, each named by the digest of its content, instead of in Dagster's database.

The project's web server serves the folder at ADDRESS. Every materialization would otherwise store its pictures again.
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import dagster as dg

from resources.files.replacing import replace_bytes

FOLDER = "pictures"  # in the home
ADDRESS = "/pictures"  # of the folder, on the web server
SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
EMBEDDED = re.compile(r"!\[(?P<text>.*)\]\(data:(?P<type>image/[a-z+]+);base64,(?P<data>[A-Za-z0-9+/=]+)\)")
LINKED = re.compile(rf"\]\({ADDRESS}/([0-9a-f]{{64}}\.[a-z]+)\)")
Value = TypeVar("Value")


def with_picture_files(metadata: Mapping[str, Value], home: Path | None) -> dict[str, Value | dg.MarkdownMetadataValue]:
    """The metadata, with links to files of the home in place of embedded pictures; unchanged without a home.

    Where nothing serves the files, the UI shows the text in place of a picture, which names its file.
    """
    if home is None:
        return {**metadata}

    def to_link(found: re.Match[str]) -> str:
        name = store(b64decode(found["data"]), SUFFIXES[found["type"]], home)
        url = f"{ADDRESS}/{name}"
        return f"[![{found['text']}: {FOLDER}/{name} in the home]({url})]({url})"  # a click shows all of it

    return {
        name: dg.MetadataValue.md(EMBEDDED.sub(to_link, value.md_str or ""))
        if isinstance(value, dg.MarkdownMetadataValue)
        else value
        for name, value in metadata.items()
    }


def store(picture: bytes, suffix: str, home: Path) -> str:
    """Stores a picture, in one step, and returns the name of its file."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{sha256(picture).hexdigest()}.{suffix}"
    if file.is_file():
        file.touch()  # linked again: vacuum goes by the time
        return file.name
    replace_bytes(file, picture)  # the name says that the content is complete
    return file.name


def linked(metadata: Mapping[str, dg.MetadataValue]) -> Iterator[str]:
    """The names of the picture files that metadata links to."""
    for value in metadata.values():
        if isinstance(value, dg.MarkdownMetadataValue):
            yield from dict.fromkeys(LINKED.findall(value.md_str or ""))


def has_pictures(metadata: Mapping[str, dg.MetadataValue], home: Path | None) -> bool:
    """Whether all picture files that metadata links to are there."""
    return all(home is not None and (home / FOLDER / name).is_file() for name in linked(metadata))
