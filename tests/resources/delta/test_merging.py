"""Merges rewrite only the files that hold rows with the same keys."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyspark.sql.types import StringType, StructField, StructType

from resources.delta import merging
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout
from tests.support.tables import SHELLS, add, shell, tables_at

ADDING = {"number": "old.number + new.number"}


@pytest.fixture
def delta_tables(tmp_path: Path) -> DeltaTables:
    """Two files of shells: with names from a to c, and from x to z."""
    tables = tables_at(tmp_path)
    add(tables, shell("a"), shell("b"), shell("c"))
    add(tables, shell("x"), shell("y"), shell("z"))
    return tables


def files(delta_tables: DeltaTables) -> set[str]:
    return set(delta_tables.newest_files(SHELLS, delta_tables.snapshot(SHELLS)))


def numbers(delta_tables: DeltaTables) -> dict[str, int]:
    rows = delta_tables.read(SHELLS, ["name", "number"]).to_pylist()
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row["number"] for row in rows}


@pytest.mark.parametrize(
    ("merged", "rewritten"),
    [(["b"], 1), (["b", "y"], 2), (["0", "d", "m", "zz"], 0), (["b", "m"], 1), (["it's a 'b'", '"'], 0)],
)
@pytest.mark.parametrize("listed_keys", [50_000, 1])
def test_only_files_with_rows_of_these_keys_are_written_again(
    delta_tables: DeltaTables, merged: list[str], rewritten: int, listed_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "LISTED_KEYS", listed_keys)
    before, old = files(delta_tables), numbers(delta_tables)
    version = delta_tables.version(SHELLS)
    delta_tables.merge(pa.Table.from_pylist([shell(name, 5) for name in merged]), SHELLS, updates=ADDING)
    assert numbers(delta_tables) == old | {name: old.get(name, 0) + 5 for name in merged}
    assert delta_tables.version(SHELLS) == version + 1, "in one commit"
    if listed_keys > len(merged):  # of more keys, all in their range are written again
        assert len(before - files(delta_tables)) == rewritten


def test_long_texts_are_not_in_the_log_and_found_all_the_same(tmp_path: Path) -> None:
    columns = StructType([StructField(name, StringType()) for name in ("name", "note")])
    tables, stones = tables_at(tmp_path), Table("stones", keys=("name",), columns=columns)
    rows = [{"name": letter, "note": letter * 60_000} for letter in "abc"]
    tables.create(stones)
    tables.append_files(stones, list(write_files(rows[:2], tables.uri(stones), file_layout(stones))))
    tables.merge(pa.Table.from_pylist(rows[1:]), stones, updates={"note": "new.note"})
    for row in rows:
        assert tables.read(stones, ["name"], pc.field("note") == row["note"])["name"].to_pylist() == [row["name"]]
    sizes = [commit.stat().st_size for commit in (tmp_path / "stones" / "_delta_log").glob("*.json")]
    assert len(sizes) == 3
    assert max(sizes) < 10_000


def test_rows_are_replaced_by_the_first_key_in_one_commit_with_a_note(delta_tables: DeltaTables) -> None:
    before, version = files(delta_tables), delta_tables.version(SHELLS)
    rows = pa.Table.from_pylist([shell("b", 9), shell("d", 9)])
    delta_tables.replace_rows(rows, SHELLS, pa.array(["a", "b", "d"]), note="nine")
    assert numbers(delta_tables) == {"b": 9, "c": 1, "d": 9, "x": 1, "y": 1, "z": 1}
    assert (delta_tables.version(SHELLS), delta_tables.last_note(SHELLS)) == (version + 1, "nine")
    assert len(before - files(delta_tables)) == 1
