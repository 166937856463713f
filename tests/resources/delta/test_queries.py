"""Queries on tables that are streamed from their files."""

from pathlib import Path

import pytest

from resources.delta.queries import Found, missing_keys, query, repeated_keys
from tests.support.tables import NECKLACES, SHELLS, add, shell, tables_at


@pytest.mark.parametrize(("more", "repeated"), [([], 0), (["cowrie"], 1), (["cowrie", "cowrie", "whelk"], 2)])
def test_keys_of_several_rows_are_counted_once_each(tmp_path: Path, more: list[str], repeated: int) -> None:
    tables = tables_at(tmp_path)
    assert repeated_keys(tables, SHELLS) == Found()
    add(tables, shell("cowrie"), shell("whelk"), shell("limpet"))
    add(tables, *map(shell, more))
    assert repeated_keys(tables, SHELLS).count == repeated


def test_missing_keys_are_those_without_a_row_there(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    add(tables, shell("cowrie"), shell("whelk", None))

    def missing(*columns: str) -> int:
        expected, there = (tables.batches(table, columns) for table in (SHELLS, NECKLACES))
        return missing_keys(expected, there, columns).count

    assert missing("name") == 2
    tables.append_files(NECKLACES, [])
    assert missing("name", "number") == 2
    assert missing_keys(tables.batches(SHELLS, ["name"]), tables.batches(SHELLS, ["name"]), ["name"]) == Found()


def test_a_few_of_many_rows_are_named(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    add(tables, *(shell(f"cowrie {number}") for number in range(20)))
    found = missing_keys(tables.batches(SHELLS, ["name"]), tables.batches(NECKLACES, ["name"]), ["name"])
    assert found.count == 20
    assert len({*found.examples}) == 5
    assert all(name.startswith("cowrie") for name in found.examples)


def test_a_key_that_is_null_is_named_so(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    add(tables, shell(None), shell(None))
    assert repeated_keys(tables, SHELLS) == Found(1, ("null",))


def test_times_stay_in_utc(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    add(tables, shell("cowrie"))
    (row,) = query("SELECT seen FROM shells", shells=tables.batches(SHELLS, ["seen"])).to_pylist()
    assert row["seen"] == shell("cowrie")["seen"]
