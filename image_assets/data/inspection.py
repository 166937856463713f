"""Inspects files before they become rows, and again in an audit (runs in executors)."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BufferedReader
from typing import cast

from image_assets.images.features import Features, to_features, to_file_features
from image_assets.images.formats import SIGNATURE_BYTES, UnreadableImage, not_an_image
from image_assets.images.isolated_process import ItemFailure
from image_assets.images.large_images import Limits
from image_assets.images.pixels import DEFAULT, Reading
from resources.delta.arrow_rows import Row
from resources.delta.local_tasks import counted
from resources.delta.new_rows import NewRows
from resources.files.file_system import (
    FileChanged,
    OpenFolders,
    link_target,
    modification_stamp,
    open_file,
    read_content,
    to_name,
)

CURRENT = "current"  # a readable image
PENDING = "pending"  # may still be written to
QUARANTINED = "quarantined"  # rejected, with a reason
MISSING = "missing"  # deleted from the folder


def decode_features(image: Row, reading: Reading = DEFAULT) -> Features | ItemFailure:
    """Decodes a row's content or, if it has none, its file; meant for a guarded process."""
    try:
        if image["content"] is not None:
            return to_features(image["content"], reading)
        with open_file(image["path"]) as file:
            found = file.seek(0, os.SEEK_END)
            if found != image["length"]:
                raise FileChanged(f"the file has {found:,} bytes, its row {image['length']:,}")
            return to_file_features(file, reading)
    except UnreadableImage as unreadable:
        return ItemFailure(unreadable.reason, str(unreadable))
    except OSError as error:
        return ItemFailure("unreadable_file", f"{error}: the file changed after it was listed; copy it again")


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a file: its bytes if it may be an image (none above the content limit), else why not."""

    state: str
    content: bytes | None = None
    image_id: str | None = None
    reason: str | None = None
    message: str | None = None


def inspect_file(path: str, length: int, limits: Limits, open_folders: OpenFolders | None = None) -> Inspection:
    """Checks a file's size, reads it, and checks its signature; it is not decoded yet.

    Its folder stays open in `open_folders` for the next files.
    """
    if length > limits.size_bytes:
        message = f"{length:,} bytes: expected at most {limits.size_bytes:,}; make the file smaller or raise the limit"
        return Inspection(QUARANTINED, reason="too_large", message=message)
    try:
        if length > limits.content_bytes and is_linked(path, limits.link_roots):
            message = (
                f"{length:,} bytes behind a link: expected at most {limits.content_bytes:,}, because tables have no "
                "copy of larger files; put the file itself into the landing folder, or raise "
                "IMAGE_ASSETS_CONTENT_LIMIT_MB"
            )
            return Inspection(QUARANTINED, reason="too_large", message=message)
        if length > limits.content_bytes:
            content, (start, image_id) = None, streamed(path, length=length)
        else:
            content = read_content(path, length=length, link_roots=limits.link_roots, open_folders=open_folders)
            start, image_id = content[:SIGNATURE_BYTES], sha256(content).hexdigest()
    except FileChanged as changed:
        return Inspection(PENDING, reason="changed", message=str(changed))
    except FileNotFoundError:
        return Inspection(MISSING)
    except OSError as error:
        message = (
            f"{error}: the file cannot be read. A run after ten minutes reads it once more; if its folder's links or "
            "permissions are the cause, correct them and launch replay_quarantine"
        )
        return Inspection(QUARANTINED, reason="unreadable_file", message=message)
    if not length:
        message = "0 bytes: expected an image; copy the file again"
        return Inspection(QUARANTINED, image_id=image_id, reason="empty", message=message)
    if why := not_an_image(start):
        return Inspection(QUARANTINED, image_id=image_id, reason="not_an_image", message=f"{length:,} bytes: {why}")
    return Inspection(CURRENT, content, image_id)


def is_linked(path: str, link_roots: Sequence[str]) -> bool:
    """Whether the file is read through a link below one of the roots."""
    return bool(link_roots) and link_target(to_name(path), link_roots) not in (None, os.fsdecode(to_name(path)))


def streamed(path: str, *, length: int) -> tuple[bytes, str]:
    """A file's first bytes and its SHA-256, read in blocks; raises FileChanged and OSError as `read_content` does."""
    with open_file(path) as file:
        before = modification_stamp(file)
        start = file.read(SIGNATURE_BYTES)
        file.seek(0)
        image_id = file_digest(cast("BufferedReader", file), "sha256").hexdigest()
        if file.tell() != length or modification_stamp(file) != before:
            raise FileChanged(f"{path} had {length} bytes when listed and {file.tell()} when read")
    return start, image_id


def rows_that_differ(rows: NewRows, of: int, parts: Iterable[int]) -> Iterator[str]:
    """The paths of the rows in some of `of` parts whose content has not the recorded length and SHA-256."""
    for part in parts:
        for row in counted(rows.rows(["path", "image_id", "length", "content"], part, of)):
            content = row["content"]
            if content is not None and (len(content), sha256(content).hexdigest()) != (row["length"], row["image_id"]):
                yield row["path"]


def files_that_differ(link_roots: Sequence[str], parts: Iterable[list[Row]]) -> Iterator[str]:
    """The paths of the files that are gone, or whose SHA-256 is not the recorded one."""
    for part in parts:
        for file in counted(part):
            if not has_content(file["path"], file["image_id"], link_roots):
                yield file["path"]


def has_content(path: str, image_id: str, link_roots: Sequence[str] = ()) -> bool:
    """Whether the file has the bytes with this SHA-256."""
    try:
        with open_file(path, link_roots) as content:
            return file_digest(cast("BufferedReader", content), "sha256").hexdigest() == image_id
    except OSError:  # deleted, or a link now
        return False
