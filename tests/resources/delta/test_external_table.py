"""A table that somebody else keeps is read as it is written, or refused with what was found and expected."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, TableFeatures, write_deltalake

from resources.delta.external_table import ExternalTable

ROWS = {"path": ["a.png", "b.png"], "label": ["007", None], "weight": [1.5, 2.5]}


def made(folder: Path, kind: str) -> ExternalTable:
    """The same rows as a file or a table of this kind."""
    source, rows = folder / f"labels{kind}", pa.table(ROWS)
    if kind == ".csv":
        source.write_text("\ufeffweight,path,label\n1.5,a.png,007\n2.5,b.png,\n")
    elif kind == ".parquet":
        pq.write_table(rows, source)
    else:
        write_deltalake(str(source), rows)
    return ExternalTable(source=str(source))


@pytest.mark.parametrize("kind", [".csv", ".parquet", ""])
def test_every_kind_of_table_is_read_as_texts_and_says_when_it_changed(tmp_path: Path, kind: str) -> None:
    table = made(tmp_path, kind)
    outside = table.read(["path", "label"], ["weight", "name"])
    rows = [{**row, "label": row["label"] or None} for row in outside.rows.to_pylist()]
    assert rows == [
        {"path": "a.png", "label": "007", "weight": "1.5"},
        {"path": "b.png", "label": None, "weight": "2.5"},
    ]
    assert outside.content.startswith("Delta version 0" if not kind else "SHA-256 ")
    assert outside.version == table.version() == table.version()
    if kind:
        Path(table.source).write_bytes(Path(table.source).read_bytes() + b"\n")
    else:
        write_deltalake(table.source, pa.table(ROWS), mode="append")
    assert table.version() != outside.version


def test_texts_of_a_csv_file_stay_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "labels.CSV"
    file.write_text('path,label\n"a, b.png",NA\n"c\nd.png",1e3\ne.png,2026-05-04\n')
    assert ExternalTable(source=str(file)).read(["label", "path"]).rows.to_pylist() == [
        {"label": "NA", "path": "a, b.png"},
        {"label": "1e3", "path": "c\nd.png"},
        {"label": "2026-05-04", "path": "e.png"},
    ]


def test_a_file_on_another_file_system_is_read() -> None:
    fsspec.filesystem("memory").pipe_file("/tables/labels.csv", b"path,label\na.png,roses\n")
    table = ExternalTable(source="memory://tables/labels.csv")
    assert table.read(["path", "label"]).rows.to_pylist() == [{"path": "a.png", "label": "roses"}]
    assert table.version().endswith(", 23 bytes")


def test_no_table_has_no_version() -> None:
    assert ExternalTable().version() == ""


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "labels"])
def test_a_table_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist: expected a file ending in"):
        ExternalTable(source=str(tmp_path / name)).version()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", b"file,label\na.png,roses\n", "expected one column path, found the columns file, label"),
        ("a.csv", b"path;label\na.png;roses\n", "expected one column path, found the columns path;label"),
        ("a.csv", b"path,path,label\na,b,c\n", "expected one column path, found the columns path, path, label"),
        ("a.csv", b"", "cannot be read: Empty CSV file"),
        ("a.csv", b"path,label\na.png\n", "Expected 2 columns, got 1"),
        ("a.csv", b"path,label\na\xff.png,roses\n", "invalid UTF8"),
        ("a.parquet", b"path,label\n", "cannot be read"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read: .*; expected a file ending in") as refused:
        ExternalTable(source=str(tmp_path / name)).read(["path", "label"])
    assert found in str(refused.value)


def test_a_column_that_holds_no_texts_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "label": [["roses", "tulips"]]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        ExternalTable(source=str(tmp_path / "a.parquet")).read(["path", "label"])


def test_a_delta_table_that_delta_rs_cannot_read_is_refused(tmp_path: Path) -> None:
    table = made(tmp_path, "")
    log = DeltaTable(table.source)
    log.alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    with pytest.raises(ValueError, match=r"labels cannot be read: .*eletion"):
        table.read(["path", "label"])
