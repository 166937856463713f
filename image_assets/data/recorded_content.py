"""Comparing stored content and files with what is recorded of them (runs in each task)."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import file_digest, sha256
from io import BufferedReader
from typing import cast

from resources.delta.arrow_rows import Row
from resources.delta.local_tasks import counted
from resources.delta.new_rows import NewRows
from resources.files.file_system import open_file


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
            if not _has_recorded_content(file, link_roots):
                yield file["path"]


def _has_recorded_content(file: Row, link_roots: Sequence[str]) -> bool:
    try:
        with open_file(file["path"], link_roots) as content:
            return file_digest(cast("BufferedReader", content), "sha256").hexdigest() == file["image_id"]
    except OSError:  # deleted, or a link now
        return False
