"""Commits without Spark: files are added with their statistics, rows merged, columns added."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema
from pyspark.sql.types import StringType, StructField, StructType

from resources.delta import parquet_files
from resources.delta.delta_log import RETENTION_PROPERTY, table_files, why_unreadable
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import followed_version, new_rows
from resources.delta.parquet_files import codecs, column_chunks, write_files
from resources.delta.table import FILL, SMALL_FILES, Snapshot, Table, file_layout
from tests.support.tables import NECKLACES, NOON, SHELLS, add, follow_shells, shell, tables_at

ADDING = {"number": "old.number + new.number"}


def names(delta_tables: DeltaTables) -> list[str]:
    return sorted(delta_tables.read(SHELLS, ["name"])["name"].to_pylist())


def test_rows_come_with_the_commit_of_their_files_and_not_before(delta_tables: DeltaTables) -> None:
    delta_tables.create(SHELLS)
    files = list(write_files([shell("cowrie"), shell("whelk")], delta_tables.uri(SHELLS), file_layout(SHELLS)))
    assert delta_tables.snapshot(SHELLS) == Snapshot(rows=0, version=0)
    assert delta_tables.append_files(SHELLS, files) == 1
    assert delta_tables.snapshot(SHELLS) == Snapshot(rows=2, version=1)
    assert delta_tables.read(SHELLS, ["name", "seen", "content"]).to_pylist() == [
        {"name": name, "seen": NOON, "content": b"\x00" * 500} for name in ("cowrie", "whelk")
    ]
    assert list(write_files([], delta_tables.uri(SHELLS), file_layout(SHELLS))) == []
    assert delta_tables.append_files(SHELLS, []) == 1, "no file, no commit"


def test_the_log_says_of_each_file_what_any_reader_skips_it_by(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("whelk", 7), shell("cowrie", None), shell(None, 3, None))
    log = DeltaTable(delta_tables.uri(SHELLS)).get_add_actions(flatten=True)
    logged = {name: log[name].to_pylist()[0] for name in log.schema.names}
    assert (logged["num_records"], logged["min.name"], logged["max.name"]) == (3, "cowrie", "whelk")
    assert (logged["min.number"], logged["max.number"]) == (3, 7)
    assert (logged["null_count.name"], logged["null_count.number"], logged["null_count.seen"]) == (1, 1, 0)
    assert logged["min.seen"] <= NOON <= logged["max.seen"], "milliseconds, rounded outwards"
    assert not {name for name in logged if name.endswith(".content")}


def test_image_bytes_are_written_as_they_are_in_row_groups_and_files_of_bounded_size(
    delta_tables: DeltaTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "TASK_ROW_GROUP_BYTES", 100_000)
    monkeypatch.setattr(parquet_files, "FILE_BYTES", 400_000)
    add(delta_tables, *(shell(f"{number:03}", content=os.urandom(10_000)) for number in range(100)))
    files = [file.url for file in table_files(delta_tables.uri(SHELLS)).files]
    assert len(files) == 3
    assert codecs(files, "content") == {"UNCOMPRESSED"}
    (content,) = (chunk for chunk in column_chunks(files) if chunk.column == "content")
    assert (content.dictionary, content.statistics) == (False, False)
    assert names(delta_tables) == [f"{number:03}" for number in range(100)]


def test_a_merge_inserts_updates_and_records_a_position_in_one_commit(delta_tables: DeltaTables) -> None:
    rows = pa.Table.from_pylist([shell("cowrie"), shell("whelk")])
    delta_tables.merge(rows, SHELLS, updates=ADDING)
    delta_tables.create(NECKLACES)
    assert followed_version(delta_tables, NECKLACES, SHELLS) is None
    delta_tables.merge(rows.slice(1), SHELLS, updates=ADDING, follows=(NECKLACES, 0))
    assert followed_version(delta_tables, NECKLACES, SHELLS) == 0
    found = delta_tables.read(SHELLS, ["name", "number"], pc.field("number") > 1).to_pylist()
    assert found == [{"name": "whelk", "number": 2}]
    assert names(delta_tables) == ["cowrie", "whelk"]


def test_merges_that_meet_are_both_there_and_update_what_the_other_inserted(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("cowrie", number=0))

    def merge(number: int) -> None:
        new = [shell("cowrie"), shell(f"whelk {number}"), shell("limpet")]
        delta_tables.merge(pa.Table.from_pylist(new), SHELLS, updates=ADDING)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(merge, range(8)))
    assert names(delta_tables) == ["cowrie", "limpet", *(f"whelk {number}" for number in range(8))]
    numbers = delta_tables.read(SHELLS, ["number"], pc.field("name").isin(["cowrie", "limpet"]))["number"].to_pylist()
    assert numbers == [8, 8]


def test_what_a_merge_writes_can_be_read_by_the_arrow_that_petastorm_needs(delta_tables: DeltaTables) -> None:
    for _ in range(2):
        delta_tables.merge(pa.Table.from_pylist([shell("cowrie")]), SHELLS, updates=ADDING)
    for file in Path(delta_tables.uri(SHELLS)).glob("*.parquet"):
        assert pq.read_schema(file).field("name").type == pa.string()


def test_small_files_are_joined_when_they_are_many(delta_tables: DeltaTables) -> None:
    for number in range(SMALL_FILES):
        delta_tables.merge(pa.Table.from_pylist([shell(f"{number}", number)]), SHELLS, updates=ADDING)
        delta_tables.compact_without_spark(SHELLS)
        assert len(table_files(delta_tables.uri(SHELLS)).files) == (number + 1 if number + 1 < SMALL_FILES else 1)
    rows = delta_tables.read(SHELLS, ["number"]).column("number").to_pylist()
    assert sorted(rows) == list(range(SMALL_FILES))


@pytest.mark.parametrize("made_before", [False, True])
def test_versions_stay_readable_though_logs_are_cleaned_up(delta_tables: DeltaTables, made_before: bool) -> None:
    if made_before:
        DeltaTable.create(delta_tables.uri(SHELLS), schema=Schema.from_json(SHELLS.columns.json()))
        delta_tables.create(SHELLS)
    first = add(delta_tables, shell("cowrie"))
    add(delta_tables, shell("whelk"))
    log = DeltaTable(delta_tables.uri(SHELLS))
    log.create_checkpoint()
    add(delta_tables, shell("limpet"))
    long_ago = time.time() - 700 * 24 * 3600
    for entry in Path(delta_tables.uri(SHELLS), "_delta_log").iterdir():
        os.utime(entry, (long_ago, long_ago))
    DeltaTable(delta_tables.uri(SHELLS)).cleanup_metadata()
    assert why_unreadable(delta_tables.uri(SHELLS), first) == ""
    assert DeltaTable(delta_tables.uri(SHELLS), version=first).to_pyarrow_table()["name"].to_pylist() == ["cowrie"]


def test_how_long_a_person_wants_a_log_to_live_stays(delta_tables: DeltaTables) -> None:
    theirs = {RETENTION_PROPERTY: "interval 9000 days"}
    DeltaTable.create(delta_tables.uri(SHELLS), Schema.from_json(SHELLS.columns.json()), configuration=theirs)
    for _ in range(2):
        delta_tables.create(SHELLS)
    assert DeltaTable(delta_tables.uri(SHELLS)).metadata().configuration == theirs
    assert delta_tables.snapshot(SHELLS).version == 0, "and there is no commit for nothing"


def test_the_reason_why_a_version_cannot_be_read_is_given(delta_tables: DeltaTables) -> None:
    uri = delta_tables.uri(SHELLS)
    assert why_unreadable(uri, 0) == "there is no such table"
    add(delta_tables, shell("cowrie"))
    version = add(delta_tables, shell("whelk"))
    assert why_unreadable(uri, version) == ""
    assert why_unreadable(uri, version + 1) == "its log does not hold the version"
    next(Path(uri).glob("*.parquet")).unlink()
    assert why_unreadable(uri, version) == "1 of its 2 files are gone"


@pytest.fixture
def older(delta_tables: DeltaTables) -> DeltaTables:
    """A table of shells that was made when they had a name and nothing else, with one row."""
    of_old = Table("shells", keys=("name",), columns=StructType(SHELLS.columns.fields[:1]))
    delta_tables.create(of_old)
    files = list(write_files([{"name": "cowrie"}], delta_tables.uri(of_old), file_layout(of_old)))
    delta_tables.append_files(of_old, files)
    return delta_tables


def columns(delta_tables: DeltaTables) -> list[str]:
    return [field.name for field in DeltaTable(delta_tables.uri(SHELLS)).schema().fields]


def test_a_table_that_was_made_with_fewer_columns_gets_the_others_once(older: DeltaTables) -> None:
    for _ in range(3):
        older.create(SHELLS)
        assert columns(older) == SHELLS.columns.fieldNames()
    assert [commit["operation"] for commit in older.history(SHELLS)[:3]] == ["SET TBLPROPERTIES", "ADD COLUMN", "WRITE"]
    assert table_files(older.uri(SHELLS)).statistics_columns == "name,number,seen"
    assert older.read(SHELLS, ["name", "content"]).to_pylist() == [{"name": "cowrie", "content": None}]


def test_a_column_that_a_table_lacks_is_read_as_null_and_reading_adds_none(older: DeltaTables) -> None:
    version = older.snapshot(SHELLS).version
    assert older.read(SHELLS, ["number", "name"]).to_pylist() == [{"number": None, "name": "cowrie"}]
    assert older.read(SHELLS, ["name"], pc.field("number") > 1).num_rows == 0
    assert older.newest(SHELLS, Snapshot(0, 0), ["name", "number"], 1) == [{"name": "cowrie", "number": None}]
    assert follow_shells(older) == [["cowrie"]]
    assert older.read(NECKLACES, ["name", "number"]).to_pylist() == [{"name": "cowrie", "number": None}]
    assert (older.snapshot(SHELLS).version, columns(older)) == (version, ["name"])


@pytest.mark.parametrize("writer", ["files", "merge"])
def test_writers_add_the_columns_that_a_table_lacks(older: DeltaTables, writer: str) -> None:
    follow_shells(older)
    if writer == "files":
        older.append_files(SHELLS, list(write_files([shell("whelk", 7)], older.uri(SHELLS), file_layout(SHELLS))))
        assert follow_shells(older) == [["whelk"]]
    else:
        older.merge(pa.Table.from_pylist([shell("whelk", 7), shell("cowrie", 8)]), SHELLS, updates={"seen": "new.seen"})
    rows = older.read(SHELLS, ["name", "number", "content"]).sort_by("name").to_pylist()
    assert rows == [
        {"name": "cowrie", "number": None, "content": None},
        {"name": "whelk", "number": 7, "content": b"\x00" * 500},
    ]


def test_several_processes_may_add_the_columns_at_once(tmp_path: Path) -> None:
    of_old = Table("shells", keys=("name",), columns=StructType(SHELLS.columns.fields[:1]))
    for number in range(5):
        delta_tables = tables_at(tmp_path / str(number))
        delta_tables.create(of_old)
        with ThreadPoolExecutor(4) as processes:
            list(processes.map(delta_tables.create, [SHELLS] * 4))
        assert columns(delta_tables) == SHELLS.columns.fieldNames()


def with_shore(fields: list[StructField], keys: tuple[str, ...]) -> Table:
    """The table of shells with these columns and the shore they lie on; those found so far are all from Rimini."""
    return Table("shells", keys, StructType([StructField("shore", StringType(), metadata={FILL: "Rimini"}), *fields]))


OF_SHORES = with_shore(SHELLS.columns.fields, ("shore", "name"))


@pytest.mark.parametrize("first", ["create", "read", "filter", "keys", "merge"])
def test_a_column_with_a_fill_value_is_added_and_filled_in_one_commit(older: DeltaTables, first: str) -> None:
    at_rimini = pc.field("shore") == "Rimini"
    again = [{"shore": "Rimini", "number": 7, "seen": NOON, "content": None, "name": "cowrie"}]
    match first:
        case "create":
            older.create(OF_SHORES)
        case "read":
            assert older.read(OF_SHORES, ["shore", "name"]).to_pylist() == [{"shore": "Rimini", "name": "cowrie"}]
        case "filter":
            assert older.read(OF_SHORES, ["name"], at_rimini).to_pylist() == [{"name": "cowrie"}]
        case "keys":
            assert older.read_keys(OF_SHORES) == {("Rimini", "cowrie")}
        case "merge":
            older.merge(pa.Table.from_pylist(again), OF_SHORES, updates={"number": "new.number"})
    assert older.read(OF_SHORES, ["shore", "name"]).to_pylist() == [{"shore": "Rimini", "name": "cowrie"}]
    version = older.snapshot(OF_SHORES).version
    older.create(OF_SHORES)
    assert older.read(OF_SHORES, ["number"], at_rimini)["number"].to_pylist() == [7 if first == "merge" else None]
    assert older.snapshot(OF_SHORES).version == version, "a table with all columns gets no commit"
    operations = [commit["operation"] for commit in older.history(OF_SHORES)][::-1]
    assert operations[2:5] == ["MERGE", "ADD COLUMN", "SET TBLPROPERTIES"]
    filled = older.as_of({"shells": 2}).read(OF_SHORES, ["shore"])
    assert filled["shore"].to_pylist() == ["Rimini"], "no version has the column and not its values"
    assert codecs(older.newest_files(OF_SHORES, Snapshot(0, 0)), "shore") == {"UNCOMPRESSED"}


def test_a_writer_at_work_while_a_column_is_filled_loses_no_row(tmp_path: Path) -> None:
    of_old = Table("shells", keys=("name",), columns=StructType(SHELLS.columns.fields[:1]))
    thin = with_shore(SHELLS.columns.fields[:1], ("shore", "name"))
    for number in range(5):
        delta_tables = tables_at(tmp_path / str(number))
        delta_tables.merge(pa.table({"name": ["cowrie"]}), of_old, updates={"name": "new.name"})
        found = [pa.table({"shore": ["Bari"], "name": [f"{shell}"]}) for shell in range(4)]
        with ThreadPoolExecutor(4) as processes:
            list(processes.map(lambda rows, to=delta_tables: to.merge(rows, thin, updates={"name": "new.name"}), found))
        assert delta_tables.read_keys(thin) == {("Rimini", "cowrie"), *(("Bari", f"{shell}") for shell in range(4))}


@pytest.mark.parametrize(("shore", "names"), [("Rimini", ["whelk"]), ("Bari", ["cowrie", "whelk"])])
def test_rows_from_before_a_filled_key_are_not_processed_again(
    older: DeltaTables, shore: str, names: list[str]
) -> None:
    older.create(NECKLACES)
    rows = [shell("cowrie"), shell("whelk")]
    older.append_files(NECKLACES, list(write_files(rows, older.uri(NECKLACES), file_layout(NECKLACES))))
    (new,) = new_rows(older, NECKLACES, OF_SHORES, part={"shore": shore})
    assert new.read(["name"])["name"].to_pylist() == names


@pytest.mark.parametrize("read", ["read", "batches"])
def test_a_process_that_read_a_table_ends_as_it_should(delta_tables: DeltaTables, read: str) -> None:
    add(delta_tables, *(shell(f"{number}") for number in range(1000)))
    program = (
        "from tests.resources.delta.test_commits import *; "
        f"rows = tables_at({delta_tables.root!r}).{read}(SHELLS, ['name', 'number', 'seen']); next(iter(rows))"
    )
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
