"""Logs with empty, truncated and missing files are repaired as far as they can be, without Spark."""

from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from resources.delta.delta_log import BrokenTable, remember
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import followed_version
from resources.delta.log_repair import LOG, SET_ASIDE, damaged_files, log_faults, repair_log
from tests.support.tables import NECKLACES, SHELLS, add, follow_shells, shell, tables_at

NAMES = ("cowrie", "whelk", "limpet")  # one commit each, after that which makes the table


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    tables = tables_at(tmp_path / "tables")
    for name in NAMES:
        add(tables, shell(name))
    return tables


def log(tables: DeltaTables) -> Path:
    return Path(tables.uri(SHELLS), LOG)


def commit(tables: DeltaTables, number: int) -> Path:
    return log(tables) / f"{number:020}.json"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def checkpoint(tables: DeltaTables) -> Path:
    DeltaTable(tables.uri(SHELLS)).create_checkpoint()
    (file,) = log(tables).glob("*.checkpoint.parquet")
    return file


def names(tables: DeltaTables) -> list[str]:
    return sorted(tables.read(SHELLS, ["name"])["name"].to_pylist())


FAULTS: dict[str, tuple[Callable[[DeltaTables], object], list[str], str]] = {
    "the last commit is empty": (lambda t: commit(t, 3).write_text(""), ["cowrie", "whelk"], "3.json is empty"),
    "the last commit is truncated": (lambda t: cut(commit(t, 3)), ["cowrie", "whelk"], "3.json is truncated"),
    "a commit is empty": (lambda t: commit(t, 2).write_text(""), ["cowrie", "limpet"], "2.json is empty"),
    "a commit is truncated": (lambda t: cut(commit(t, 2)), ["cowrie", "limpet"], "2.json is truncated"),
    "a commit is missing": (lambda t: commit(t, 2).unlink(), ["cowrie", "limpet"], "2.json is missing"),
    "the checkpoint is missing": (lambda t: checkpoint(t).unlink(), [*NAMES], "whose checkpoint is missing"),
    "the checkpoint is broken": (lambda t: cut(checkpoint(t)), [*NAMES], "checkpoint.parquet cannot be read"),
    "the hint is missing": (
        lambda t: (checkpoint(t), (log(t) / "_last_checkpoint").unlink()),
        [*NAMES],
        "_last_checkpoint is missing",
    ),
    "the hint is broken": (
        lambda t: (checkpoint(t), cut(log(t) / "_last_checkpoint")),
        [*NAMES],
        "_last_checkpoint cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_log_is_repaired_and_keeps_what_it_can(tables: DeltaTables, fault: str) -> None:
    make, rest, message = FAULTS[fault]
    assert log_faults(tables.uri(SHELLS)) == []
    make(tables)
    assert message in " ".join(map(str, log_faults(tables.uri(SHELLS))))
    assert message in " ".join(repair_log(tables.uri(SHELLS)))
    assert log_faults(tables.uri(SHELLS)) == []
    assert names(tables) == sorted(rest)
    assert tables.snapshot(SHELLS).version == 3, "the number of a lost commit is not used again"
    assert [one["version"] for one in tables.history(SHELLS)] == [3, 2, 1, 0]
    assert repair_log(tables.uri(SHELLS)) == []
    add(tables, shell("conch"))
    assert names(tables) == sorted([*rest, "conch"])


def test_what_cannot_be_read_is_set_aside_and_not_deleted(tables: DeltaTables) -> None:
    cut(commit(tables, 3))
    broken = commit(tables, 3).read_bytes()
    repair_log(tables.uri(SHELLS))
    (kept,) = Path(tables.uri(SHELLS), SET_ASIDE).iterdir()
    assert (kept.read_bytes(), kept.name[-25:]) == (broken, commit(tables, 3).name)
    DeltaTable(tables.uri(SHELLS)).vacuum(0, enforce_retention_duration=False, dry_run=False, full=True)
    assert kept.exists()


@pytest.mark.parametrize("fault", ["first commit", "first commits, with a broken checkpoint"])
def test_a_log_that_cannot_be_repaired_is_set_aside(tables: DeltaTables, fault: str) -> None:
    if fault == "first commit":
        cut(commit(tables, 0))
    else:
        cut(checkpoint(tables))
        commit(tables, 0).unlink()
    assert log_faults(tables.uri(SHELLS))
    assert any("its log cannot be read" in found for found in repair_log(tables.uri(SHELLS)))
    assert not list(log(tables).iterdir())
    remember.cache_clear()
    tables.recreate(SHELLS)
    assert names(tables) == []


def test_a_log_of_whole_files_is_left_alone_even_if_it_cannot_be_read(tables: DeltaTables) -> None:
    text = commit(tables, 0).read_text()
    commit(tables, 0).write_text(text.replace('"minReaderVersion":1', '"minReaderVersion":99'))
    assert text != commit(tables, 0).read_text()
    before = sorted(file.name for file in log(tables).iterdir())
    with pytest.raises(BrokenTable, match="nothing was changed"):
        repair_log(tables.uri(SHELLS))
    assert sorted(file.name for file in log(tables).iterdir()) == before


@pytest.mark.parametrize("left", [None, 0, 100])
def test_files_that_are_gone_or_cut_off_leave_the_log(tables: DeltaTables, left: int | None) -> None:
    file = next(Path(tables.uri(SHELLS)).glob("*.parquet"))
    content = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(content[:left])
    assert len(damaged_files(tables.uri(SHELLS))) == 1
    assert repair_log(tables.uri(SHELLS)) == ["1 of its files are gone or cut off"]
    assert len(names(tables)) == 2
    assert damaged_files(tables.uri(SHELLS)) == []
    aside = [one.stat().st_size for one in Path(tables.uri(SHELLS), SET_ASIDE).glob(f"*-{file.name}")]
    assert aside == ([] if left is None else [left])


def test_a_follower_goes_on_after_a_repair(tables: DeltaTables) -> None:
    follow_shells(tables)
    cut(commit(tables, 3))
    repair_log(tables.uri(SHELLS))
    assert followed_version(tables, SHELLS, NECKLACES) is None, "the commit is another one"
    add(tables, shell("limpet"), shell("conch"))
    assert follow_shells(tables) == [["conch"]]
