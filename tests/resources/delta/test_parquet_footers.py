"""Footers say the codec of a column and the size of row groups."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.delta.parquet_files import codecs, row_groups


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
