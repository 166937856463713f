"""Tests of the validation of contestants' output."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.outputs import WrongOutput, require_gray, require_ingested
from benchmarks.photographs import SMALL, files_in, write
from benchmarks.task import to_gray

COUNT = 4


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    write(SMALL, tmp_path / "landing", range(COUNT))
    return tmp_path / "landing"


@pytest.fixture
def rows(landing: Path) -> list[dict[str, object]]:
    """The output of a correct contestant."""
    return [{"path": f"file:{file}", "content": file.read_bytes()} for file in files_in(landing)]


def written(rows: list[dict[str, object]], folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    return folder


def test_every_file_with_its_bytes_is_taken(rows: list[dict], landing: Path, tmp_path: Path) -> None:
    require_ingested(written(rows, tmp_path / "output"), landing)


def test_a_lost_or_repeated_row_is_not(rows: list[dict], landing: Path, tmp_path: Path) -> None:
    for name, wrong in {"lost": rows[1:], "repeated": [*rows, rows[0]]}.items():
        with pytest.raises(WrongOutput, match=f"{len(wrong)} rows"):
            require_ingested(written(wrong, tmp_path / name), landing)


def test_other_bytes_are_not(rows: list[dict], landing: Path, tmp_path: Path) -> None:
    rows[0]["content"] += b"\0"
    with pytest.raises(WrongOutput, match="differ from its file"):
        require_ingested(written(rows, tmp_path / "output"), landing)


@pytest.mark.parametrize("kernel", ["own", "pillow"])
def test_gray_pixels_are_those_of_the_same_decoder(
    kernel: str, rows: list[dict], landing: Path, tmp_path: Path
) -> None:
    gray = [{**row, "content": to_gray(kernel)(row["content"])} for row in rows]
    require_gray(written(gray, tmp_path / "output"), landing, kernel)
    gray[0]["content"] = gray[1]["content"]
    with pytest.raises(WrongOutput, match="gray pixels differ"):
        require_gray(written(gray, tmp_path / "mixed up"), landing, kernel)
