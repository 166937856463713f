"""Footers have codecs and row groups, and samples come from all over a table's files."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.delta.parquet_files import (
    MAX_FILES,
    Statistics,
    codecs,
    evenly_spaced,
    is_whole,
    newest_first,
    row_groups,
    sample_rows,
)


def parquet_file(file: Path, codec: str, rows: int = 10) -> Path:
    file.parent.mkdir(exist_ok=True)
    table = pa.table({"path": ["file:/a"] * rows, "content": [b"image"] * rows})
    pq.write_table(table, file, compression={"path": "gzip", "content": codec}, row_group_size=4)
    return file


def test_the_codecs_of_one_column_are_found_in_all_files(tmp_path: Path) -> None:
    plain = parquet_file(tmp_path / "plain.parquet", "none").as_uri()
    snappy = parquet_file(tmp_path / "snappy.parquet", "snappy").as_uri()
    assert codecs([plain], "content") == {"UNCOMPRESSED"}
    assert codecs([plain, snappy], "content") == {"UNCOMPRESSED", "SNAPPY"}
    assert codecs([plain], "path") == {"GZIP"}
    assert codecs([], "content") == set()


def test_row_groups_are_counted_over_all_files(tmp_path: Path) -> None:
    files = [parquet_file(tmp_path / name, "none").as_uri() for name in ("a.parquet", "b.parquet")]
    assert [rows for rows, _ in row_groups(files)] == [4, 4, 2, 4, 4, 2]
    assert all(size > 4 * len(b"image") / 2 for _, size in row_groups(files))


@pytest.mark.parametrize("folder", ["with a space", "100%", "a#b"])
def test_a_url_may_hold_escaped_signs(tmp_path: Path, folder: str) -> None:
    file = parquet_file(tmp_path / folder / "a.parquet", "none")
    assert codecs([file.as_uri()], "content") == {"UNCOMPRESSED"}
    assert newest_first(str(tmp_path / folder)) == [file.as_uri()]
    assert is_whole(file.as_uri())


@pytest.mark.parametrize("values", [[1.0, math.inf], [-math.inf, 1.0], [math.nan], [math.nan, None]])
def test_statistics_are_json_whatever_the_numbers(values: list[float | None]) -> None:
    statistics = Statistics(["share", "number"])
    statistics.add(pa.table({"share": values, "number": [2.0] * len(values)}))
    found = json.loads(statistics.to_json(), parse_constant=pytest.fail)
    assert (found["minValues"], found["maxValues"]) == ({"number": 2.0}, {"number": 2.0})


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
