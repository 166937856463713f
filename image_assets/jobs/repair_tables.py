"""Repair: restores what the audit finds missing, as far as anything has a copy of it.

Row by row, and only what has the recorded SHA-256: raw_images from files that its log does not name, from
featured_images and from the landing folder; the ledger from raw_images and the folder. The tables that follow them
compare their keys at the next run, which makes the rows that they lack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.image_files import IMAGE_KEYS, Decision, LedgerEntry, merge_decisions, read_ledger
from image_assets.data.ingestion import LEDGER_COLUMNS, to_limits
from image_assets.data.inspection import CURRENT, MISSING, inspect_file
from image_assets.jobs.launchpad_examples import with_example
from image_assets.jobs.optimize_tables import records
from image_assets.schemas import (
    CURRENT_PREDICTIONS,
    FEATURED_IMAGES,
    FETCHED_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_FILES,
    IMAGE_SAMPLES,
    IMAGE_SPLITS,
    LABEL_CORRECTIONS,
    PREDICTION_ALERTS,
    RAW_IMAGES,
    REPLAYED_FILES,
    STAGE_HISTORY,
    TABLES,
    UPSTREAM,
)
from resources.delta.arrow_rows import Row
from resources.delta.delta_log import REPAIR_JOB, LostTable, table_files
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import forget_position, rows_with_keys
from resources.delta.log_repair import repair_log
from resources.delta.new_rows import READ_ROWS, Key
from resources.delta.parquet_files import is_whole, newest_first, open_parquet, write_files
from resources.delta.table import Table, file_layout
from resources.files.image_folder import ImageFolder
from resources.files.listing import Listing

OVERWRITTEN = (CURRENT_PREDICTIONS, IMAGE_SAMPLES)  # as a whole, so that leftover files hold rows that are outdated
# What nothing else has a copy of, and why it matters that the table starts empty.
IRREPLACEABLE = {
    LABEL_CORRECTIONS: "corrections made by people are lost",
    PREDICTION_ALERTS: "alerts that were sent already will be sent again",
    STAGE_HISTORY: "who moved which version is lost; the history starts with the current stages",
}
# What the next run creates again, but not as it was.
CHANGED = {
    IMAGE_FILES: "first_seen, attempts and earlier states of the files are lost",
    IMAGE_SPLITS: "images are assigned again, so that images which a version was trained on can be in the test split: "
    "train the models again",
    REPLAYED_FILES: "its rows are lost",
    FETCHED_IMAGES: "the next run of fetch_images downloads every image again",
}
NEXT = "launch ingest_images (or `make demo`), which makes the missing rows, then run `make audit`"


class RepairConfig(dg.Config):
    """Which tables may start empty although their rows are lost."""

    give_up: list[str] = Field(
        default=[],
        description=f"Lost tables to recreate although nothing can restore their rows: some of "
        f"{', '.join(table.name for table in IRREPLACEABLE)}.",
    )


@dataclass(frozen=True)
class Repair:
    """What was found and done about one table: a row of the report."""

    table: str
    found: str
    restored_rows: int
    not_restorable: str


def repair(delta_tables: DeltaTables, image_folder: ImageFolder, give_up: Sequence[str] = ()) -> list[Repair]:
    """Repairs all tables, and returns what was wrong with them; run it while nothing else writes them.

    Raises:
        LostTable: Nothing can restore the rows of a table; the others are repaired.
    """
    if unknown := set(give_up) - {table.name for table in IRREPLACEABLE}:
        expected = ", ".join(table.name for table in IRREPLACEABLE)
        raise ValueError(f"give_up: {', '.join(sorted(unknown))}. Expected some of: {expected}")
    found, lost = repair_logs(delta_tables, give_up)
    for restored in (restore_from_featured(delta_tables), restore_ledger(delta_tables, image_folder)):
        found += restored
    found += restore_from_folder(delta_tables, image_folder)
    found += forget_positions(delta_tables, {one.table for one in found})
    if lost:
        raise LostTable("\n".join([*lost, *(f"{one.table}: {one.found}" for one in found)]))
    return found


def repair_logs(delta_tables: DeltaTables, give_up: Sequence[str]) -> tuple[list[Repair], list[str]]:
    """Repairs the log of each table, and recreates lost tables with the rows of files that are left.

    Returns:
        What was found, and for each table that stays lost how to go on.
    """
    found, lost = [], []
    for table in TABLES:
        faults = repair_log(delta_tables.uri(table))
        left = [] if table in OVERWRITTEN else newest_first(delta_tables.uri(table))
        if is_lost(delta_tables, table, left):
            if table in IRREPLACEABLE and not left and table.name not in give_up:
                lost.append(
                    f"{table.name} is gone and nothing can restore its rows. Restore {delta_tables.uri(table)} from a "
                    f"backup, or launch {REPAIR_JOB} with `give_up: [{table.name}]`: {IRREPLACEABLE[table]}"
                )
                continue
            delta_tables.recreate(table)
            faults.append("the table was gone")
        elif left and not faults and not delta_tables.snapshot(table).rows:
            faults.append("it has no rows, but files with rows")  # an earlier repair was killed
        if faults:
            rows = 0 if table in OVERWRITTEN else restore_from_files(delta_tables, table)
            gone = "" if rows else IRREPLACEABLE.get(table, "") or CHANGED.get(table, "")
            found.append(Repair(table.name, "; ".join(faults), rows, gone if "the table was gone" in faults else ""))
    return found, lost


def is_lost(delta_tables: DeltaTables, table: Table, left: Sequence[str]) -> bool:
    """Whether the table was created and has no log; `left` are the files in its folder."""
    try:
        return delta_tables.newest_version(table) is None and bool(left)
    except LostTable:
        return True


def restore_from_files(delta_tables: DeltaTables, table: Table) -> int:
    """Adds the rows of files that the table's log does not name, if it has none with their keys; returns how many.

    Of several rows with the same keys, the one in the newest file is the last that was committed.
    """
    logged = {file.url.rpartition("/")[2] for file in table_files(delta_tables.uri(table)).files}
    left = [file for file in newest_first(delta_tables.uri(table)) if file.rpartition("/")[2] not in logged]
    there = set(delta_tables.read_keys(table))
    schema = to_arrow_schema(table.columns)

    def rows() -> Iterator[Row]:
        for file in filter(is_whole, left):
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(READ_ROWS, use_threads=False):
                    for row in to_schema(pa.Table.from_batches([batch]), schema).to_pylist():
                        if (key := tuple(row[name] for name in table.keys)) not in there:
                            there.add(key)
                            yield row

    return append(delta_tables, table, rows())


def to_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly these columns; those that they lack are null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema)


def append(delta_tables: DeltaTables, table: Table, rows: Iterable[Row]) -> int:
    """Adds rows in one commit, and returns how many."""
    before = delta_tables.snapshot(table).rows
    delta_tables.append_files(table, list(write_files(rows, delta_tables.uri(table), file_layout(table))))
    return delta_tables.snapshot(table).rows - before


def restore_from_featured(delta_tables: DeltaTables) -> list[Repair]:
    """Restores rows of raw_images from featured_images, which holds the same bytes, also of replaced files."""
    lacking = delta_tables.read_keys(FEATURED_IMAGES, names=IMAGE_KEYS) - delta_tables.read_keys(RAW_IMAGES)
    if not lacking:
        return []
    forget_position(delta_tables, RAW_IMAGES, FEATURED_IMAGES)
    new = rows_with_keys(delta_tables, FEATURED_IMAGES, RAW_IMAGES, lacking)
    rows = (
        row
        for row in new.rows(RAW_IMAGES.columns.fieldNames(), 0, 1)
        if row["content"] is None or sha256(row["content"]).hexdigest() == row["image_id"]
    )
    restored = append(delta_tables, RAW_IMAGES, rows)
    left = f"{len(lacking) - restored} rows have other content" if restored < len(lacking) else ""
    return [Repair(RAW_IMAGES.name, f"{len(lacking)} rows of featured_images have none", restored, left)]


def restore_ledger(delta_tables: DeltaTables, image_folder: ImageFolder) -> list[Repair]:
    """Restores rows of image_files for the paths in raw_images, with the content that the folder has now."""
    in_ledger = pa.array([path for (path,) in delta_tables.read_keys(IMAGE_FILES)], pa.string())
    rows = delta_tables.read(RAW_IMAGES, LEDGER_COLUMNS, ~pc.field("path").isin(in_ledger)).to_pylist()
    if not rows:
        return []
    listing = image_folder.list_names()
    by_path: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row["modification_time"], is_in_folder(row, listing))):
        if row["path"] not in by_path or not is_in_folder(by_path[row["path"]], listing):
            by_path[row["path"]] = row
    decisions = [Decision(state=CURRENT if path in listing.names else MISSING, **row) for path, row in by_path.items()]
    merge_decisions(delta_tables, decisions, delta_tables.snapshot(RAW_IMAGES).version, attempted=False)
    return [Repair(IMAGE_FILES.name, f"{len(decisions)} files of raw_images had no row", len(decisions), "")]


def is_in_folder(row: Row, listing: Listing) -> bool:
    """Whether the file in the folder has the length and time of the row."""
    file = listing.stat_file(row["path"]) if listing.names.get(row["path"]) else None
    return file is not None and (file.length, file.modification_time) == (row["length"], row["modification_time"])


def restore_from_folder(delta_tables: DeltaTables, image_folder: ImageFolder) -> list[Repair]:
    """Restores rows of raw_images for current files that still have the recorded SHA-256."""
    there = delta_tables.read_keys(RAW_IMAGES)
    lacking = {
        path: entry
        for path, entry in read_ledger(delta_tables).items()
        if entry.state == CURRENT and (path, entry.image_id) not in there
    }
    if not lacking:
        return []
    forget_position(delta_tables, RAW_IMAGES, FEATURED_IMAGES)
    with delta_tables.progress_line("restored", len(lacking), "files") as progress:
        rows = rows_in_folder(image_folder, lacking, progress.update)
        restored = append(delta_tables, RAW_IMAGES, rows)
    left = f"{len(lacking) - restored} files are gone or have other content" if restored < len(lacking) else ""
    return [Repair(RAW_IMAGES.name, f"{len(lacking)} current files had no row", restored, left)]


def rows_in_folder(
    image_folder: ImageFolder, wanted: Mapping[str, LedgerEntry], count: Callable[[], object]
) -> Iterator[Row]:
    """Rows of raw_images for the wanted files with the recorded SHA-256; `count` is called for each file."""
    listing, limits = image_folder.list_paths(wanted), to_limits(image_folder)
    for path, entry in wanted.items():
        count()
        file = listing.stat_file(path) if listing.names.get(path) else None
        inspection = inspect_file(path, file.length, limits) if file else None
        if file and inspection and (inspection.state, inspection.image_id) == (CURRENT, entry.image_id):
            stored = {"image_id": inspection.image_id, "content": inspection.content}
            yield {"path": path, "modification_time": file.modification_time, "length": file.length, **stored}


def forget_positions(delta_tables: DeltaTables, repaired: set[str]) -> list[Repair]:
    """Lets tables compare keys at the next run: those that were repaired or follow one, and those that lack rows."""
    current = delta_tables.read_keys(IMAGE_FILES, pc.field("state") == CURRENT, names=IMAGE_KEYS)
    found = []
    for into, upstream in UPSTREAM:
        if into == PREDICTION_ALERTS or delta_tables.newest_version(into) is None:
            continue
        expected = delta_tables.read_keys(upstream, expected_rows(into), names=IMAGE_KEYS) & current
        there = delta_tables.read_keys(into, names=IMAGE_KEYS)
        # Without weights, there are no embeddings at all.
        lacking: frozenset[Key] = expected - there if there or into != IMAGE_EMBEDDINGS else frozenset()
        if lacking or {into.name, upstream.name} & repaired:
            forget_position(delta_tables, upstream, into)
        if lacking:
            repaired = repaired | {into.name}  # its followers may have the rows that it gets again
            found.append(Repair(into.name, f"{len(lacking)} current files have no row: the next run adds them", 0, ""))
    return found


def expected_rows(table: Table) -> pc.Expression | None:
    """Selects the rows of the upstream that the table has a row for; None for all."""
    return pc.field("label").is_valid() if table == IMAGE_SPLITS else None


@dg.op(pool="image_files")
def repair_every_table(
    context: dg.OpExecutionContext, config: RepairConfig, delta_tables: DeltaTables, image_folder: ImageFolder
) -> None:
    """Restores what is missing; the output's metadata lists what was found, restored, and what cannot be."""
    rows = repair(delta_tables, image_folder, config.give_up)
    for row in rows:
        restored = f"{row.restored_rows:,} rows restored" if row.restored_rows else ""
        context.log.info("; ".join(filter(None, [f"{row.table}: {row.found}", restored, row.not_restorable])))
    context.add_output_metadata(
        {"repaired": records(rows, Repair), "next": NEXT if rows else "nothing was found: no table needs a repair"}
    )


@dg.job(
    description=with_example(
        REPAIR_JOB, "Restore tables, rows and Delta logs that are lost or broken, as far as they can be."
    )
)
def repair_tables() -> None:
    """Repairs every table."""
    repair_every_table()
