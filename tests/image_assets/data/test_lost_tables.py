"""A table that is gone or whose log is broken is reported with the remedy, and never replaced by an empty one."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.data.audit import AuditResult, check_tables
from image_assets.data.image_files import merge_decisions, read_ledger
from image_assets.data.ingestion import unrecorded_rows
from image_assets.data.raw_images import IngestConfig, ingest
from image_assets.schemas import IMAGE_FILES, RAW_IMAGES, TABLES
from resources.delta.delta_log import BrokenTable, LostTable, remember
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import new_rows
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder
from tests.gallery.small_home import append
from tests.support.tables import tables_at

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
BY_NAME = {"ids": lambda table: table.name}


def row(name: str, image_id: str = "0" * 64) -> dict:
    return {"path": f"file:/{name}", "image_id": image_id, "length": 1, "modification_time": NOON}


def in_ledger(name: str) -> dict:
    return {**row(name), "state": "current", "attempts": 1, "first_seen": NOON, "last_seen": NOON}


def no_rows(table: Table) -> pa.Table:
    return to_arrow_schema(table.columns).empty_table()


def remove(delta_tables: DeltaTables, table: Table, what: str) -> None:
    shutil.rmtree(Path(delta_tables.uri(table)) / what)
    remember.cache_clear()  # as in another process


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return tables_at(tmp_path / "tables")


USES: dict[str, Callable[[DeltaTables, Table], object]] = {
    "create": lambda tables, table: tables.create(table),
    "read": lambda tables, table: tables.read(table, table.keys),
    "snapshot": lambda tables, table: tables.snapshot(table),
    "newest_version": lambda tables, table: tables.newest_version(table),
    "append": lambda tables, table: append(tables, table, [{}]),
    "merge": lambda tables, table: tables.merge(no_rows(table), table, updates={}),
}


@pytest.mark.parametrize("what", ["", "_delta_log"])
@pytest.mark.parametrize("table", TABLES, **BY_NAME)
def test_a_lost_table_is_an_error_that_names_the_remedy(tables: DeltaTables, table: Table, what: str) -> None:
    tables.create(table)
    remove(tables, table, what)
    for use in USES.values():
        with pytest.raises(LostTable, match=rf"the table {table.name} is gone.*backup.*the job repair_tables"):
            use(tables, table)
    assert not Path(tables.uri(table), "_delta_log").exists()


@pytest.mark.parametrize("use", USES)
def test_a_table_that_never_was_is_made(tables: DeltaTables, use: str) -> None:
    USES[use](tables, RAW_IMAGES)
    tables.create(RAW_IMAGES)
    assert tables.newest_version(RAW_IMAGES) in (0, 1)


@pytest.mark.parametrize("table", TABLES, **BY_NAME)
def test_a_truncated_log_is_an_error_that_names_the_remedy(tables: DeltaTables, table: Table) -> None:
    tables.create(table)
    commit = Path(tables.uri(table), "_delta_log", f"{0:020}.json")
    commit.write_text(commit.read_text()[:-20])
    for use in USES.values():
        with pytest.raises(
            BrokenTable, match=rf"log of {table.name} .* cannot be read: .*repair_tables. The error: .*"
        ):
            use(tables, table)


def test_a_table_of_an_earlier_release_is_remembered_when_it_is_first_opened(tables: DeltaTables) -> None:
    tables.create(RAW_IMAGES)
    shutil.rmtree(Path(tables.root, ".made"))
    remember.cache_clear()
    tables.create(RAW_IMAGES)
    remove(tables, RAW_IMAGES, "")
    with pytest.raises(LostTable):
        tables.create(RAW_IMAGES)


@pytest.mark.parametrize("what", ["", "_delta_log"])
@pytest.mark.parametrize("remembered", [True, False])
def test_ingesting_without_raw_images_writes_nothing(
    tables: DeltaTables, image_folder: ImageFolder, what: str, remembered: bool
) -> None:
    """Also if an earlier release made the table: the ledger says that it had rows."""
    append(tables, IMAGE_FILES, [in_ledger("shell.png")])
    append(tables, RAW_IMAGES, [row("shell.png")])
    before = read_ledger(tables)
    remove(tables, RAW_IMAGES, what)
    if not remembered:
        Path(tables.root, ".made", RAW_IMAGES.name).unlink()
    for _ in range(2):
        with pytest.raises(LostTable, match="raw_images .*repair_tables"):
            ingest(tables, image_folder, IngestConfig(), dg.get_dagster_logger())
    assert read_ledger(tables) == before


def recovered(tables: DeltaTables) -> int:
    """Record the rows that the ledger lacks, and return the version of raw_images that it covers."""
    unrecorded, version = unrecorded_rows(tables)
    merge_decisions(tables, unrecorded, version)
    return version


def test_the_ledger_gets_the_rows_of_a_table_that_was_recreated(tables: DeltaTables) -> None:
    append(tables, RAW_IMAGES, [row("shell.png")])
    assert recovered(tables) == 1
    remove(tables, RAW_IMAGES, "")
    tables.recreate(RAW_IMAGES)
    append(tables, RAW_IMAGES, [row("shell.png"), row("whelk.png"), {**row("whelk.png"), "image_id": "1" * 64}])
    assert recovered(tables) == 1, "the same number, but another table"
    assert sorted(read_ledger(tables)) == ["file:/shell.png", "file:/whelk.png"]
    assert list(new_rows(tables, RAW_IMAGES, IMAGE_FILES)) == []


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("lost", "LostTable: the table raw_images is gone"),
        ("empty", f"{1:020}.json is empty"),
        ("truncated", f"{1:020}.json is truncated"),
        ("file", ".parquet"),
    ],
)
def test_the_audit_reports_a_table_that_is_lost_or_broken_and_goes_on(
    tables: DeltaTables, fault: str, found: str
) -> None:
    append(tables, RAW_IMAGES, [row("shell.png")])
    append(tables, IMAGE_FILES, [in_ledger("shell.png")])
    assert [one.rule for one in results(tables) if one.broken] == []
    commit = Path(tables.uri(RAW_IMAGES), "_delta_log", f"{1:020}.json")
    match fault:
        case "lost":
            remove(tables, RAW_IMAGES, "")
        case "empty":
            commit.write_text("")
        case "truncated":
            commit.write_bytes(commit.read_bytes()[:-20])
        case "file":
            next(Path(tables.uri(RAW_IMAGES)).glob("*.parquet")).unlink()
    (broken,) = (one for one in results(tables) if one.broken)
    assert (broken.rule, broken.broken) == ("raw_images: its log and its files are whole", 1)
    assert found in broken.examples[0]


def results(tables: DeltaTables) -> list[AuditResult]:
    return [rule.result() for rule in check_tables(tables)]
