"""Faults of a table's Delta log, and their repair: empty, truncated and missing commits, and lost checkpoints.

A repair never deletes: files that cannot be read are moved to a folder beside the log. An empty commit takes the
place of a commit that is lost, so that its number is not used again. The rows it held are restored by
`image_assets/jobs/repair_tables.py`.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from resources.delta.delta_log import BrokenTable, first_line, is_whole, table_files
from resources.delta.parquet_files import file_system_of, located, size_of

LOG, SET_ASIDE = "_delta_log", "_broken_delta_log"
HINT = "_last_checkpoint"
COMMIT = re.compile(r"(\d{20})\.json")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint.*\.parquet")


@dataclass(frozen=True)
class LogFile:
    """A file of a log that cannot be used, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} {self.why}"


def log_faults(uri: str) -> list[LogFile]:
    """The files of the log of the table at `uri` that are empty, truncated or missing, apart from its first commit.

    Opens checkpoints and the newest commit; older commits only if the log cannot be read.
    """
    system, folder = file_system_of(uri)
    files = {info.base_name: info for info in _files(system, f"{folder}/{LOG}")}
    commits = sorted(int(found[1]) for name in files if (found := COMMIT.fullmatch(name)))
    to_open = commits if _why_unreadable(uri) else commits[-1:]
    faults = [LogFile(_commit_name(number), "is empty") for number in commits if not files[_commit_name(number)].size]
    faults += [
        LogFile(_commit_name(number), "is truncated")
        for number in to_open
        if files[_commit_name(number)].size and not is_whole(_read(system, files[_commit_name(number)]))
    ]
    faults += [
        LogFile(_commit_name(number), "is missing")
        for before, after in zip(commits, commits[1:], strict=False)
        for number in range(before + 1, after)
    ]
    return [*faults, *_checkpoint_faults(system, files)]


def _checkpoint_faults(system: FileSystem, files: dict[str, FileInfo]) -> Iterator[LogFile]:
    checkpoints = {name: info for name, info in files.items() if CHECKPOINT.fullmatch(name)}
    rows = {name: _count_rows(system, info) for name, info in checkpoints.items()}
    yield from (LogFile(name, "cannot be read") for name, count in rows.items() if count is None)
    whole = {int(name[:20]) for name, count in rows.items() if count is not None}
    if HINT in files:
        try:
            version = json.loads(_read(system, files[HINT]))["version"]
        except (ValueError, KeyError, TypeError):
            yield LogFile(HINT, "cannot be read")
        else:
            if version not in whole:
                yield LogFile(HINT, f"names version {version}, whose checkpoint is missing")
    elif whole:
        yield LogFile(HINT, "is missing")


def repair_log(uri: str) -> list[str]:
    """Repairs the log of the table at `uri`; returns what was found.

    A log that cannot be repaired is set aside as a whole, so that the table is lost. Files of rows that are gone or cut
    off leave the log.

    Raises:
        BrokenTable: The log cannot be read although its files are whole, perhaps because the storage does not answer.
    """
    faults = log_faults(uri)
    system, folder = file_system_of(uri)
    aside = f"{folder}/{SET_ASIDE}"
    for fault in faults:
        _set_aside(system, f"{folder}/{LOG}/{fault.name}", aside)
        if COMMIT.fullmatch(fault.name) and int(fault.name[:20]):
            with system.open_output_stream(f"{folder}/{LOG}/{fault.name}") as file:
                file.write(_empty_commit())
    if why := _why_unreadable(uri):
        if not faults:
            raise BrokenTable(f"{uri}: {why}. Its files are whole, so nothing was changed: does the storage answer?")
        for info in _files(system, f"{folder}/{LOG}"):
            _set_aside(system, info.path, aside)
        return [*map(str, faults), why]
    if not DeltaTable.is_deltatable(uri):
        return [*map(str, faults)]
    if any(not COMMIT.fullmatch(fault.name) for fault in faults):
        _write_checkpoint(uri)
    damaged = damaged_files(uri)
    for file in damaged:
        _set_aside(*located(file), aside)
    if damaged:
        DeltaTable(uri).repair()
    return [*map(str, faults), *([f"{len(damaged)} of its files are gone or cut off"] if damaged else [])]


def damaged_files(uri: str) -> list[str]:
    """The files of rows that are in the log of the table at `uri`, but gone or of another size."""
    return [file.url for file in table_files(uri).files if size_of(file.url) != file.size_bytes]


def _why_unreadable(uri: str) -> str:
    try:
        if DeltaTable.is_deltatable(uri):
            DeltaTable(uri)
    except DeltaError as error:
        return f"its log cannot be read: {first_line(error)}"
    return ""


def _files(system: FileSystem, folder: str) -> list[FileInfo]:
    found = system.get_file_info(FileSelector(folder, allow_not_found=True))
    return [info for info in found if info.type == FileType.File]


def _commit_name(number: int) -> str:
    return f"{number:020}.json"


def _read(system: FileSystem, info: FileInfo) -> bytes:
    with system.open_input_stream(info.path) as file:
        return file.read()


def _count_rows(system: FileSystem, info: FileInfo) -> int | None:
    """The number of rows of a Parquet file; None if it cannot be read."""
    try:
        return pq.read_metadata(info.path, filesystem=system).num_rows
    except (ArrowException, OSError):
        return None


def _write_checkpoint(uri: str) -> None:
    """Writes a checkpoint unless there is one, and the hint to the newest, which delta-rs writes with new ones only."""
    system, folder = file_system_of(uri)
    if not any(CHECKPOINT.fullmatch(info.base_name) for info in _files(system, f"{folder}/{LOG}")):
        DeltaTable(uri).create_checkpoint()
    newest = max(
        (info for info in _files(system, f"{folder}/{LOG}") if CHECKPOINT.fullmatch(info.base_name)),
        key=lambda info: info.base_name,
    )
    hint = {"version": int(newest.base_name[:20]), "size": _count_rows(system, newest)}
    with system.open_output_stream(f"{folder}/{LOG}/{HINT}") as file:
        file.write(json.dumps(hint).encode())


def _empty_commit() -> bytes:
    information = {"timestamp": time.time_ns() // 10**6, "operation": "REPAIR", "operationParameters": {}}
    return json.dumps({"commitInfo": information}).encode() + b"\n"


def _set_aside(system: FileSystem, path: str, folder: str) -> None:
    if system.get_file_info(path).type == FileType.File:
        system.create_dir(folder)
        system.move(path, f"{folder}/{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{path.rpartition('/')[2]}")
