"""Following a table: finding the rows that it got since another table last processed it, and processing each once.

A following table records in its own commits up to which commit it has processed its upstream: the upstream's table id,
the version, and its time. Rows and position are committed together, so a killed run can simply be run again. A part of
a table, such as the predictions of one model version, can follow by itself; its commits name the part. If no commit has
a position, or the upstream lacks that commit or the log or files since, all rows are processed except those whose keys
the following table already has.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from operator import and_
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from resources.delta.delta_log import UPSTREAM, VERSION, DataFile, table_files, why_void
from resources.delta.delta_tables import EVERY_PART, PART, WHOLE, DeltaTables, to_part
from resources.delta.new_rows import Key, NewRows
from resources.delta.parquet_files import WrittenFile, exists
from resources.delta.table import Change, Table

WRITTEN = "WRITE"  # the operation of a commit that adds rows
REWRITTEN = "UPDATE"  # of one that changes the paths of existing rows
BATCH_BYTES = 512 * 1024**2

AddedFiles = list[tuple[int | None, list[DataFile]]]  # files by the version that added them


def follow(
    delta_tables: DeltaTables,
    upstream: Table,
    into: Table,
    *,
    by: Callable[[NewRows], Sequence[WrittenFile]],
    part: Mapping[str, object] = WHOLE,
) -> Change:
    """Process an upstream's new rows and append the results to a table.

    Args:
        delta_tables: The tables.
        upstream: The table that is followed.
        into: The table that follows.
        by: Writes the files of `into` for one batch of new rows (see `writing.py`), without a commit. Each batch
            becomes one commit, which also records the upstream's version.
        part: Values of some of the keys of `into`: the part of the table that follows by itself.
    """
    before = delta_tables.snapshot(into)
    for new in new_rows(delta_tables, upstream, into, part=part):
        delta_tables.append_files(into, by(new), follows=(upstream, new.version), part=part)
    delta_tables.compact(into)
    return delta_tables.change_since(before, into)


def new_rows(
    delta_tables: DeltaTables,
    upstream: Table,
    into: Table,
    batch_bytes: int = BATCH_BYTES,
    part: Mapping[str, object] = WHOLE,
) -> Iterator[NewRows]:
    """The rows that `into` has not processed, oldest first, in batches of about `batch_bytes` that end at a version."""
    keys = tuple(name for name in into.keys if name not in part)
    found, skipped = unprocessed_files(delta_tables, upstream, into, part, keys)
    counts = [file.rows for _, files in found for file in files]
    rows = sum(filter(None, counts))
    share = 1 - min(1.0, len(skipped) / rows) if rows else 1.0  # of the rows that are processed, taken as evenly spread
    total = None if None in counts else round(rows * share)
    all_bytes = round(share * sum(file.size_bytes for _, files in found for file in files))
    before = 0
    for version, batch in to_batches(found, batch_bytes):
        count = round(sum(file.rows or 0 for file in batch) * share)
        yield NewRows(
            tuple(file.url for file in batch),
            version,
            keys,
            skipped,
            size_bytes=sum(file.size_bytes for file in batch),
            all_bytes=all_bytes,
            count=count,
            before=before,
            total=total,
        )
        before += count


def unprocessed_files(
    delta_tables: DeltaTables, upstream: Table, into: Table, part: Mapping[str, object], keys: Sequence[str]
) -> tuple[AddedFiles, frozenset[Key]]:
    """The upstream's files with rows that `into` may lack, oldest first, and the keys of rows in them to skip."""
    recorded = _recorded_position(delta_tables, upstream, into, part)
    void = why_void(delta_tables.uri(upstream), recorded) if recorded else None
    if void:
        dg.get_dagster_logger().warning(
            f"{upstream.name} {void} since {into.name} last read it, so rows are compared by key"
        )
    found = added_files(delta_tables, upstream, int(recorded[VERSION])) if recorded and not void else None
    if found is not None:
        return found, frozenset()
    skipped = delta_tables.read_keys(into, is_of(part) if part else None, names=keys)
    version = delta_tables.version(upstream)
    files = table_files(delta_tables.uri(upstream), version).files[::-1]
    # Only the last batch has the position: after a run that was killed before it, the next one compares keys again.
    return [*((None, [file]) for file in files[:-1]), *((version, [file]) for file in files[-1:])], skipped


def to_batches(found: AddedFiles, batch_bytes: int) -> Iterator[tuple[int | None, list[DataFile]]]:
    """The files in batches of about `batch_bytes` that end at a version."""
    batch: list[DataFile] = []
    for version, files in found:
        batch += files
        if version == found[-1][0] or sum(file.size_bytes for file in batch) >= batch_bytes:
            yield version, batch
            batch = []


def rows_with_keys(delta_tables: DeltaTables, upstream: Table, into: Table, wanted: Iterable[Key]) -> NewRows:
    """The rows of `upstream` with these keys that `into` lacks, in whichever files they are."""
    keys = frozenset(wanted)
    skipped = delta_tables.read_keys(into, pc.field(into.keys[0]).isin([key[0] for key in keys]))
    return replace(stored_rows(delta_tables, upstream, keys), keys=into.keys, skipped=skipped)


def stored_rows(delta_tables: DeltaTables, table: Table, wanted: Iterable[Key]) -> NewRows:
    """The rows of a table with these keys, in whichever files they are."""
    keys = frozenset(wanted)
    files = table_files(delta_tables.uri(table), delta_tables.version_to_read(table)).files
    rows = sum(file.rows or 0 for file in files)
    size_bytes = sum(file.size_bytes for file in files) * len(keys) // max(rows, len(keys), 1)
    return NewRows(
        tuple(file.url for file in files),
        None,
        table.keys,
        wanted=keys,
        size_bytes=size_bytes,
        all_bytes=size_bytes,
        count=len(keys),
        total=len(keys),
    )


def added_rows(delta_tables: DeltaTables, table: Table, version: int, columns: Sequence[str]) -> pa.Table | None:
    """The columns of the rows that later versions added; None if the log or a file is gone."""
    found = added_files(delta_tables, table, version)
    if found is None:
        return None
    return NewRows(tuple(file.url for _, files in found for file in files), None).read(columns)


def followed_version(
    delta_tables: DeltaTables, upstream: Table, into: Table, part: Mapping[str, object] = WHOLE
) -> int | None:
    """The upstream's version up to which the table, or a part of it, has all rows; None if no commit records one.

    A position in a table that was recreated, or restored from an older copy, is ignored.
    """
    position = _recorded_position(delta_tables, upstream, into, part)
    return None if position is None or why_void(delta_tables.uri(upstream), position) else int(position[VERSION])


def forget_position(
    delta_tables: DeltaTables, upstream: Table, into: Table, part: Mapping[str, object] | None = None
) -> None:
    """Makes a part of the table, or every part, compare its keys with those of the upstream when it next follows it."""
    delta_tables.commit(into, [], {UPSTREAM: upstream.name, PART: EVERY_PART if part is None else to_part(part)})


def _recorded_position(
    delta_tables: DeltaTables, upstream: Table, into: Table, part: Mapping[str, object]
) -> Mapping[str, Any] | None:
    """The newest commit with a position in the upstream; None if there is none, or if it was forgotten since."""
    parts = (to_part(part), EVERY_PART)

    def is_position(commit: Mapping[str, Any]) -> bool:
        return commit.get(UPSTREAM) == upstream.name and commit.get(PART, to_part(WHOLE)) in parts

    commit = delta_tables.newest_commit(into, is_position)
    return commit if commit and VERSION in commit else None


def versions_with_new_rows(delta_tables: DeltaTables, table: Table, after: int) -> list[int] | None:
    """The later versions that added rows, oldest first.

    None if the log does not go back that far, or if their paths were rewritten since, because the home moved: their
    files hold the former ones.
    """
    newest = delta_tables.snapshot(table).version
    commits = delta_tables.history(table, newest - after) if newest > after else []
    if len(commits) < newest - after:
        return None
    written = sorted(commit["version"] for commit in commits if commit["operation"] == WRITTEN)
    rewritten = max((commit["version"] for commit in commits if commit["operation"] == REWRITTEN), default=0)
    return None if written and written[0] < rewritten else written


def added_files(delta_tables: DeltaTables, table: Table, after: int) -> AddedFiles | None:
    """The files with new rows of each later version; None if the log or a file is gone."""
    versions = versions_with_new_rows(delta_tables, table, after)
    if versions is None:
        return None
    uri = delta_tables.uri(table)
    # Most versions follow each other, so that what was before one of them has just been read.
    files_at = lru_cache(maxsize=2)(lambda version: set(table_files(uri, version).files))
    found: AddedFiles = []
    for version in versions:
        before, now = (files_at(at) for at in (version - 1, version))
        found.append((version, sorted(now - before, key=lambda file: file.url)))
    gone = any(not exists(file.url) for _, files in found for file in files)
    return None if gone else found


def is_of(part: Mapping[str, object]) -> pc.Expression:
    """Selects the rows of a part of a table, by the values of at least one key."""
    return reduce(and_, (pc.field(name) == value for name, value in part.items()))
