"""What is estimated of zstd is what zstd does; bytes of chance it leaves as they are."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_assets.jobs.optimize_tables import SAMPLE_BYTES, savings

ROWS = 3000


def parquet_file(file: Path, codec: str, content_bytes: int = 2000) -> str:
    """Paths and texts that compress, content that does not."""
    columns = {
        "path": [f"file:/landing/{number:08}.jpg" for number in range(ROWS)],
        "texts": [[f"text {number}", "and another one"] for number in range(ROWS)],
        "content": [os.urandom(content_bytes) for _ in range(ROWS)],
    }
    pq.write_table(pa.table(columns), file, compression=codec)
    return file.as_uri()


def column_bytes(file: Path) -> dict[str, int]:
    group = pq.read_metadata(file).row_group(0)
    chunks = [group.column(place) for place in range(group.num_columns)]
    return {chunk.path_in_schema.split(".")[0]: chunk.total_compressed_size for chunk in chunks}


def test_what_is_estimated_is_what_a_recompression_saves(tmp_path: Path) -> None:
    told = {saving.column: saving for saving in savings([parquet_file(tmp_path / "plain.parquet", "none")])}
    pq.write_table(pq.read_table(tmp_path / "plain.parquet"), tmp_path / "zstd.parquet", compression="zstd")
    plain, zstd = column_bytes(tmp_path / "plain.parquet"), column_bytes(tmp_path / "zstd.parquet")
    assert {saving.codec for saving in told.values()} == {"UNCOMPRESSED"}
    for column in ("path", "texts"):
        assert told[column].share == pytest.approx(1 - zstd[column] / plain[column], abs=0.05)
        assert told[column].share > 0.4
    assert told["content"].share < 0.01


def test_what_is_compressed_already_has_less_to_save(tmp_path: Path) -> None:
    told = {saving.column: saving for saving in savings([parquet_file(tmp_path / "zstd.parquet", "zstd")])}
    assert all(saving.share < 0.01 for saving in told.values())
    mixed = [parquet_file(tmp_path / "a.parquet", "zstd"), parquet_file(tmp_path / "b.parquet", "snappy")]
    assert {saving.codec for saving in savings(mixed)} == {"mixed"}


def test_the_sample_is_bounded(tmp_path: Path) -> None:
    files = [parquet_file(tmp_path / f"{number}.parquet", "none", 10_000) for number in range(2)]
    content = next(saving for saving in savings(files) if saving.column == "content")
    assert 0.8 * 2 * SAMPLE_BYTES < content.bytes_now < 1.1 * 2 * SAMPLE_BYTES
    assert savings([]) == []
