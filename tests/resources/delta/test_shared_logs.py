"""A log stays open while nobody commits, and is opened again after whatever may happen to a table."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from resources.delta.delta_log import BrokenTable, LostTable, remember
from resources.delta.shared_logs import MOST_LOGS, shared_log

ROWS = pa.table({"number": [1, 2, 3]})


@pytest.fixture
def uri(tmp_path: Path) -> str:
    address = str(tmp_path / "flowers")
    write_deltalake(address, ROWS)
    write_deltalake(address, ROWS, mode="append")
    return address


def opened(uri: str) -> DeltaTable:
    log = shared_log(uri)
    assert log is not None
    return log


def state(log: DeltaTable) -> tuple[str, int, int]:
    return str(log.metadata().id), log.version(), log.count()


def append(uri: str) -> None:
    write_deltalake(uri, ROWS, mode="append")


def recreate(uri: str) -> None:
    shutil.rmtree(uri)
    for _ in range(2):
        write_deltalake(uri, ROWS.slice(1), mode="append")


def restore_a_copy(uri: str) -> None:
    shutil.copytree(uri, f"{uri} copy")
    shutil.rmtree(uri)
    Path(f"{uri} copy").rename(uri)


def lose_the_newest_commit(uri: str) -> None:
    max(Path(uri, "_delta_log").glob("*.json")).unlink()


def rewrite_the_first_commit(uri: str) -> None:
    first = min(Path(uri, "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in first.read_text().splitlines()]
    first.write_text("\n".join(json.dumps(action) for action in actions if "add" not in action))


def test_an_unchanged_log_is_opened_once(uri: str) -> None:
    assert opened(uri) is opened(uri)
    assert shared_log(uri, without_files=True) is opened(uri)


@pytest.mark.parametrize("change", [append, recreate, restore_a_copy, lose_the_newest_commit, rewrite_the_first_commit])
def test_a_changed_log_is_opened_again(uri: str, change: Callable[[str], None]) -> None:
    before = opened(uri)
    change(uri)
    after, fresh = opened(uri), DeltaTable(uri)
    assert after is not before
    assert (after.metadata().id, after.version(), after.count()) == (
        fresh.metadata().id,
        fresh.version(),
        fresh.count(),
    )


def test_a_log_without_files_is_not_given_to_those_who_need_them(uri: str) -> None:
    assert shared_log(uri, without_files=True)
    assert opened(uri).count() == 6


def test_damage_and_loss_are_noticed(uri: str) -> None:
    remember(uri)
    opened(uri)
    newest = max(Path(uri, "_delta_log").glob("*.json"))
    newest.write_text(newest.read_text()[:40])
    with pytest.raises(BrokenTable):
        shared_log(uri)
    shutil.rmtree(uri)
    with pytest.raises(LostTable):
        shared_log(uri)


def test_few_logs_stay_open(uri: str, tmp_path: Path) -> None:
    first = opened(uri)
    for number in range(MOST_LOGS):
        other = str(tmp_path / str(number))
        shutil.copytree(uri, other)
        opened(other)
    assert opened(uri) is not first
