"""A table follows another by its commits, without Spark."""

import shutil
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from resources.delta.delta_log import COMMITTED, UPSTREAM_ID
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import (
    added_rows,
    followed_version,
    forget_position,
    new_rows,
    rows_with_keys,
    versions_with_new_rows,
)
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout
from tests.support.tables import NECKLACES, SHELLS, add, follow_shells, shell


def test_a_table_follows_from_where_its_last_commit_says(delta_tables: DeltaTables) -> None:
    assert follow_shells(delta_tables) == []
    add(delta_tables, shell("cowrie"))
    add(delta_tables, shell("whelk"))
    assert follow_shells(delta_tables, stop_before_commit=True) == [["cowrie", "whelk"]]
    assert follow_shells(delta_tables, batch_bytes=1) == [["cowrie"], ["whelk"]], "what was not committed comes again"
    assert follow_shells(delta_tables) == []
    DeltaTable(delta_tables.uri(SHELLS)).optimize.compact()
    assert follow_shells(delta_tables) == [], "compaction brings no row"
    add(delta_tables, shell("limpet"))
    DeltaTable(delta_tables.uri(SHELLS)).optimize.compact()
    assert follow_shells(delta_tables) == [["limpet"]]


def test_files_from_before_the_keys_were_rewritten_are_not_followed(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("cowrie"))
    follow_shells(delta_tables)
    followed = delta_tables.version(SHELLS)
    add(delta_tables, shell("whelk"))
    DeltaTable(delta_tables.uri(SHELLS)).update({"name": "concat('moved ', name)"})
    assert versions_with_new_rows(delta_tables, SHELLS, followed) is None, "the table compares its keys instead"
    rewritten = delta_tables.version(SHELLS)
    assert versions_with_new_rows(delta_tables, SHELLS, rewritten - 1) == [], "rewriting brings no row"
    add(delta_tables, shell("limpet"))
    assert versions_with_new_rows(delta_tables, SHELLS, rewritten) == [rewritten + 1]


def test_a_batch_knows_how_many_rows_come_before_it_and_in_all(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("cowrie"), shell("whelk"))
    add(delta_tables, shell("limpet"))
    batches = new_rows(delta_tables, SHELLS, NECKLACES, batch_bytes=1)
    assert [(new.before, new.total) for new in batches] == [(0, 3), (2, 3)]


@pytest.mark.parametrize("lost", ["log", "files", "position"])
def test_without_a_log_or_files_or_its_position_a_table_gets_what_it_lacks(
    delta_tables: DeltaTables, lost: str
) -> None:
    for name in ("cowrie", "whelk"):
        add(delta_tables, shell(name))
    follow_shells(delta_tables)
    for name in ("limpet", "conch"):
        add(delta_tables, shell(name))
    shells = DeltaTable(delta_tables.uri(SHELLS))
    if lost == "log":
        shells.create_checkpoint()
        for number in range(4):
            Path(delta_tables.uri(SHELLS), "_delta_log", f"{number:020}.json").unlink()
    elif lost == "files":
        shells.optimize.compact()
        DeltaTable(delta_tables.uri(SHELLS)).vacuum(0, enforce_retention_duration=False, dry_run=False)
    else:
        for commit in Path(delta_tables.uri(NECKLACES), "_delta_log").glob("*.json"):
            commit.write_text(commit.read_text().replace('"upstream"', '"forgotten"'))
    assert sorted(sum(follow_shells(delta_tables), [])) == ["conch", "limpet"]
    assert follow_shells(delta_tables) == []
    assert sorted(delta_tables.read(NECKLACES, ["name"])["name"].to_pylist()) == ["conch", "cowrie", "limpet", "whelk"]


def test_some_rows_are_read_by_their_keys(delta_tables: DeltaTables) -> None:
    add(delta_tables, *(shell(name, number) for number, name in enumerate(("cowrie", "whelk", "limpet"))))
    wanted = [("whelk",), ("limpet",)]
    new = rows_with_keys(delta_tables, SHELLS, NECKLACES, wanted)
    assert [list(new.rows(["name", "number"], part, 2)) for part in (0, 1)] == [
        [{"name": "whelk", "number": 1}, {"name": "limpet", "number": 2}],
        [],
    ]
    assert rows_with_keys(delta_tables, SHELLS, SHELLS, wanted).read(["name"]).num_rows == 0, "none that are there"


def test_the_rows_that_came_since_a_version_are_those_of_appends(delta_tables: DeltaTables) -> None:
    first = add(delta_tables, shell("cowrie"))
    add(delta_tables, shell("whelk"), shell("limpet"))
    DeltaTable(delta_tables.uri(SHELLS)).optimize.compact()
    since = [sorted(added_rows(delta_tables, SHELLS, version, ["name"])["name"].to_pylist()) for version in range(4)]
    assert since == [["cowrie", "limpet", "whelk"], ["limpet", "whelk"], [], []]
    assert first == 1


def test_parts_of_a_table_follow_by_themselves(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("cowrie"))
    delta_tables.create(NECKLACES)
    delta_tables.append_files(NECKLACES, [], follows=(SHELLS, 1), part={"number": 1})
    positions = [followed_version(delta_tables, SHELLS, NECKLACES, part) for part in ({"number": 1}, {"number": 2}, {})]
    assert positions == [1, None, None]


def test_rows_of_a_part_without_a_position_are_not_processed_again(delta_tables: DeltaTables) -> None:
    """As in a table whose position was recorded elsewhere."""
    pearls = Table("pearls", keys=("name", "number"), columns=SHELLS.columns)
    add(delta_tables, shell("cowrie"), shell("whelk"))
    delta_tables.create(pearls)
    there = [shell("cowrie", number=2), shell("whelk", number=3)]
    delta_tables.append_files(pearls, list(write_files(there, delta_tables.uri(pearls), file_layout(pearls))))
    (new,) = new_rows(delta_tables, SHELLS, pearls, part={"number": 2})
    assert new.read(["name"])["name"].to_pylist() == ["whelk"]


def test_a_table_that_was_created_again_is_followed_from_its_first_row(
    delta_tables: DeltaTables, caplog: pytest.LogCaptureFixture
) -> None:
    add(delta_tables, shell("cowrie"))
    assert follow_shells(delta_tables) == [["cowrie"]]
    shutil.rmtree(delta_tables.uri(SHELLS))
    delta_tables.recreate(SHELLS)
    add(delta_tables, shell("whelk"), shell("cowrie"))
    assert follow_shells(delta_tables) == [["whelk"]], "although its versions have the same numbers"
    assert "shells was recreated since necklaces last read it, so rows are compared by key" in caplog.text
    assert follow_shells(delta_tables) == []


@pytest.mark.parametrize("more", [(), ("limpet",), ("limpet", "conch")])
def test_a_table_that_was_restored_from_an_older_copy_is_followed_by_keys(
    delta_tables: DeltaTables, tmp_path: Path, more: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    add(delta_tables, shell("cowrie"))
    shutil.copytree(delta_tables.uri(SHELLS), tmp_path / "copy")
    add(delta_tables, shell("whelk"))
    assert sorted(sum(follow_shells(delta_tables), [])) == ["cowrie", "whelk"]
    shutil.rmtree(delta_tables.uri(SHELLS))
    shutil.copytree(tmp_path / "copy", delta_tables.uri(SHELLS))
    time.sleep(0.002)  # times of commits are in milliseconds
    for name in more:
        add(delta_tables, shell(name))
    assert sorted(sum(follow_shells(delta_tables), [])) == sorted(more)
    assert ("shells was restored from another copy" in caplog.text) is True
    add(delta_tables, shell("abalone"))
    assert follow_shells(delta_tables) == [["abalone"]]


def test_positions_of_earlier_releases_are_believed(delta_tables: DeltaTables) -> None:
    """They name no table and no time. Nothing is processed again, and the next commit records them."""
    add(delta_tables, shell("cowrie"))
    follow_shells(delta_tables)
    for commit in Path(delta_tables.uri(NECKLACES), "_delta_log").glob("*.json"):
        text = commit.read_text()
        commit.write_text(text.replace(UPSTREAM_ID, "someId").replace(COMMITTED, "someTime"))
    assert followed_version(delta_tables, SHELLS, NECKLACES) == 1
    add(delta_tables, shell("whelk"))
    (new,) = new_rows(delta_tables, SHELLS, NECKLACES)
    assert (new.skipped, new.read(["name"])["name"].to_pylist()) == (frozenset(), ["whelk"])
    assert follow_shells(delta_tables) == [["whelk"]]
    newest = delta_tables.history(NECKLACES, 1)[0]
    assert (newest[UPSTREAM_ID], newest[COMMITTED].isdigit()) == (delta_tables.table_id(SHELLS), True)


def test_a_forgotten_position_makes_a_table_get_what_it_lacks(delta_tables: DeltaTables) -> None:
    add(delta_tables, shell("cowrie"))
    follow_shells(delta_tables)
    delta_tables.append_files(NECKLACES, [], follows=(SHELLS, 1), part={"number": 1})
    add(delta_tables, shell("whelk"))
    delta_tables.append_files(NECKLACES, [], follows=(SHELLS, 2))
    assert follow_shells(delta_tables) == [], "the position hides that a row is missing"
    forget_position(delta_tables, SHELLS, NECKLACES)
    assert followed_version(delta_tables, SHELLS, NECKLACES, {"number": 1}) is None, "that of every part"
    assert follow_shells(delta_tables) == [["whelk"]]
    assert followed_version(delta_tables, SHELLS, NECKLACES) == 2
