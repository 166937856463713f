"""A few rows are from all over a table's files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from resources.delta.parquet_files import MAX_FILES, evenly_spaced, sample_rows


def write(folder: Path, number: int, rows: int) -> str:
    file = folder / f"{number}.parquet"
    table = pa.table({"file": [number] * rows, "row": list(range(rows))})
    pq.write_table(table, file, row_group_size=10)
    return str(file)


def test_what_is_spread_is_from_all_over() -> None:
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced([1, 2], 3) == [1, 2]
    assert evenly_spaced([], 3) == []


def test_rows_are_of_all_files_and_of_several_row_groups(tmp_path: Path) -> None:
    files = [write(tmp_path, number, 40) for number in range(3)]
    rows = sample_rows(files, ["file", "row", "later"], 12)
    assert [row["file"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert [row["row"] for row in rows[:4]] == [0, 5, 20, 25]
    assert {row["later"] for row in rows} == {None}


def test_files_with_more_rows_make_up_for_those_with_few(tmp_path: Path) -> None:
    files = [write(tmp_path, number, 1 if number else 20) for number in (1, 0)]
    assert len(sample_rows(files, ["file"], 8)) == 8
    assert sample_rows([], ["file"], 8) == []


def test_only_some_of_many_files_are_opened(tmp_path: Path) -> None:
    files = [write(tmp_path, number, 5) for number in range(50)]
    assert len({row["file"] for row in sample_rows(files, ["file"], 40)}) == MAX_FILES
