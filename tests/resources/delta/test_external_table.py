"""A table that somebody else keeps is read as it is written, or refused with what was found and expected."""

import json
import shutil
from datetime import date
from operator import itemgetter
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
        ("a.csv", b"path,path,label\na,b,c\n", "expected one column path, found the columns path, path, label"),
        ("a.csv", b"", "cannot be read: it is empty"),
        ("a.csv", b"path,label\na.png\n", "row 2 has 1 of 2 columns"),
        ("a.csv", b"path,label\na\x81.png,roses\n", "line 2 has the byte 0x81, which is neither UTF-8 nor Windows"),
        ("a.csv", b'"path,label\na.png,roses\n', "its header cannot be read"),
        ("a.csv", b"\x1f\x8b\x08\0", "it is compressed with gzip: unpack it"),
        ("a.csv", b"PK\x03\x04\x14\0", "it is a ZIP file, such as an Excel workbook: save it as CSV"),
        ("a.parquet", b"path,label\n", "cannot be read"),
        ("a.xml", b'<?xml version="1.0" encoding="foo"?><annotations/>', "it is not valid XML: unknown encoding"),
        ("a.json", b'{"a": [', "cannot be read: Expecting value"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'{"shapes": []}', "expected COCO, tasks of Label Studio, or a list of objects, found dict"),
        ("a.xml", b"<annotations><image", "it is not valid XML"),
        ("a.xml", b"<annotations/>", "export the task as `CVAT for images`"),
        ("a.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "declares a document type"),
        ("a.xlsx", b"PK", "has an unknown format"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a file ending in") as refused:
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


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_folder_that_is_called_like_a_file_holds_its_parts(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "all[1]" / f"labels{kind}"
    folder.mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    made(tmp_path, kind)
    for number in range(2):
        shutil.copy(tmp_path / f"labels{kind}", folder / f"part-{number}{kind}")
    assert ExternalTable(source=str(folder)).read(["path"]).rows["path"].to_pylist() == ["a.png", "b.png"] * 2
    assert ExternalTable(source=f"{folder}/part-*{kind}").version().startswith("2 files")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"other is a folder without a Delta table: .*/other/\*\.parquet means"):
        ExternalTable(source=str(tmp_path / "other")).read_all()


def test_a_delta_table_may_be_called_like_a_file(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "labels.parquet"), pa.table(ROWS))
    table = ExternalTable(source=str(tmp_path / "labels.parquet"))
    assert table.read(["path"]).rows["path"].to_pylist() == ["a.png", "b.png"]
    assert table.version() == "Delta version 0"


@pytest.mark.parametrize("what", ["an empty log", "a broken log", "no data", "broken data"])
def test_a_damaged_delta_table_is_named(tmp_path: Path, what: str) -> None:
    table = made(tmp_path, "")
    (data,) = Path(table.source).glob("*.parquet")
    (log,) = Path(table.source, "_delta_log").glob("*.json")
    if what == "no data":
        data.unlink()
    else:
        damaged = log if "log" in what else data
        damaged.write_bytes(b"" if what == "an empty log" else b"{" + damaged.read_bytes()[100:])
    with pytest.raises(ValueError, match="labels cannot be read: ") as refused:
        table.read_all()
    assert "\n" not in str(refused.value)
    if "log" in what:
        with pytest.raises(ValueError, match="labels cannot be read: "):
            table.version()


@pytest.mark.parametrize(
    ("labels", "features", "found", "notes"),
    [
        ([0, 1], {"label": {"names": ["roses", "tulips"], "_type": "ClassLabel"}}, ["roses", "tulips"], 0),
        ([-1, 7], {"label": {"names": ["roses", "tulips"], "_type": "ClassLabel"}}, [None, "7"], 1),
        (["roses", "x"], {"label": {"names": ["roses", "tulips"], "_type": "ClassLabel"}}, ["roses", "x"], 0),
        ([0, 1], {"label": {"names": None, "_type": "ClassLabel"}, "objects": [{"x": {}}]}, ["0", "1"], 0),
        ([0, 1], None, ["0", "1"], 0),
    ],
)
def test_class_names_replace_numbers_of_classes_only(
    tmp_path: Path, labels: list, features: object, found: list, notes: int
) -> None:
    table = pa.table({"path": ["a", "b"], "label": labels})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    rows = ExternalTable(source=str(tmp_path / "a.parquet")).read_all()
    assert rows.rows["label"].to_pylist() == found
    assert len(rows.notes) == notes


def test_large_values_and_stray_zero_bytes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"path,label,data\na.jpg,roses,{'A' * 200_000}\nb.jpg,tu\0lips,\n")
    assert ExternalTable(source=str(file)).read(["label"]).rows["label"].to_pylist() == ["roses", "tu\0lips"]
    file.write_text('path,label\n"a.jpg,roses\n' + "b.jpg,roses\n" * 12_000)
    found = ExternalTable(source=str(file)).read_all()
    assert (len(found.rows), len(found.problems)) == (12_000, 1)


def test_a_partitioned_delta_table_is_read_whatever_its_values(tmp_path: Path) -> None:
    columns = {
        "path": ["a.png", "b.png", "c.png"],
        "label": ["oxeye daisies", "50% rosé/tulips", None],
        "day": [date(2026, 5, 4), date(2026, 5, 4), None],
        "person": [1, 2, None],
    }
    source = str(tmp_path / "labels of Zoë")
    write_deltalake(source, pa.table(columns), partition_by=["label", "day", "person"])
    found = ExternalTable(source=source).read(list(columns)).rows
    assert sorted(found.to_pylist(), key=itemgetter("path")) == [
        {"path": "a.png", "label": "oxeye daisies", "day": "2026-05-04", "person": "1"},
        {"path": "b.png", "label": "50% rosé/tulips", "day": "2026-05-04", "person": "2"},
        {"path": "c.png", "label": None, "day": None, "person": None},
    ]
    log = DeltaTable(source)
    log.alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    with pytest.raises(ValueError, match="deletionVectors"):
        ExternalTable(source=source).read(["path"])


WRITTEN = "path,label\ncafé 1.png,rosé\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_a_csv_file_is_read_whatever_its_delimiter_and_encoding(
    tmp_path: Path, delimiter: str, line_break: str, encoding: str
) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(WRITTEN.replace(",", delimiter).replace("\n", line_break).encode(encoding))
    found = ExternalTable(source=str(file)).read_all()
    assert found.rows.to_pylist() == [{"path": "café 1.png", "label": "rosé"}]
    assert bool(found.notes) == (encoding in ("utf-16-le", "utf-16-be", "cp1252"))  # guesses
    assert [*found.numbers] == [2]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sep=;\npath;label\na, b.png;roses\n", [("a, b.png", "roses")]),
        ("path;label\na, b, c.png;roses\nd, e, f.png;tulips\n", [("a, b, c.png", "roses"), ("d, e, f.png", "tulips")]),
        ('path, label\n"a, b.png", "roses"\n', [("a, b.png", "roses")]),
        (" path ,label,\n\na.png,roses,\n , ,\n", [("a.png", "roses")]),
    ],
)
def test_what_spreadsheets_make_of_a_table_is_read(tmp_path: Path, text: str, rows: list[tuple[str, str]]) -> None:
    (tmp_path / "labels.txt").write_text(text)
    found = ExternalTable(source=str(tmp_path / "labels.txt")).read_all()
    assert [(row["path"], row["label"]) for row in found.rows.to_pylist()] == rows
    assert found.problems == []


@pytest.mark.parametrize(
    ("text", "rows", "problem"),
    [
        ("path,label\na.png\nb.png,roses\n", 1, "row 2 has 1 of 2 columns: add the others"),
        ("path,label\na,b.png,roses\nb.png,roses\n", 1, "row 2 has 3 columns, the header has 2: quote values that con"),
        ('path,label\na.png,"roses\nb.png,roses\nc.png,roses\n', 2, "row 2 cannot be read (unexpected end of data)"),
        ('path,label\n"a".png,roses\n"b,1.png","roses"\n', 1, "row 2 cannot be read"),
        ('"path","label"\n"a.png","ro"ses"\n"b\n.png","roses"\n', 1, "row 2 cannot be read"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, text: str, rows: int, problem: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    found = ExternalTable(source=str(tmp_path / "labels.csv")).read_all()
    assert len(found.rows) == rows
    assert found.problems[0].startswith(problem)


def test_lines_of_different_encodings_are_each_read_in_theirs(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\ncafé.png,a\n".encode() + "thé.png,b\n".encode("cp1252"))
    found = ExternalTable(source=str(tmp_path / "labels.csv")).read_all()
    assert found.rows["path"].to_pylist() == ["café.png", "thé.png"]
    assert "line 3 is not UTF-8 and read as Windows-1252 (cp1252), a guess; line 3 is 'thé.png,b'" in found.notes[0]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for name, text in {"a": "path,label\n1.png,x\n", "b": "path,label,part\n2.png,y,7\n3.png\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text(text)
    table = ExternalTable(source=f"{tmp_path}/*/metadata.csv")
    found, version = table.read_all(), table.version()
    assert found.rows.to_pylist() == [
        {"path": "1.png", "label": "x", "part": None},
        {"path": "2.png", "label": "y", "part": "7"},
    ]
    assert [Path(folder).name for folder in found.folders] == ["a", "b"]
    assert found.problems == ["metadata.csv: row 3 has 1 of 3 columns: add the others"]
    (tmp_path / "a" / "metadata.csv").write_text("path,label\n1.png,longer\n")
    assert table.version() != version


def test_of_hugging_faces_parquet_only_paths_and_class_names_are_read(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": {"names": ["roses", "tulips"], "_type": "ClassLabel"}}}}
    images = [{"bytes": b"\xff\xd8", "path": f"{number}.jpg"} for number in range(3)]
    rows = pa.table({"image": images, "label": [1, 0, None], "content": [b"\0", b"\0", b"\0"]})
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet")
    found = ExternalTable(source=str(tmp_path / "a.parquet")).read_all().rows
    assert found.to_pylist() == [
        {"image": "0.jpg", "label": "tulips"},
        {"image": "1.jpg", "label": "roses"},
        {"image": "2.jpg", "label": None},
    ]


def test_labels_of_every_plain_type_become_texts(tmp_path: Path) -> None:
    columns = {
        "path": ["a.png", "b.png"],
        "kind": pa.array(["roses", None]).dictionary_encode(),
        "whole": [1, None],
        "float": pa.array([1.0, None], pa.float64()),
        "truth": [True, None],
        "bytes": [b"\0", b"\0"],
        "list": [["x"], []],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = ExternalTable(source=str(tmp_path / "a.parquet")).read_all()
    assert found.rows.to_pylist() == [
        {"path": "a.png", "kind": "roses", "whole": "1", "float": "1", "truth": "true"},
        {"path": "b.png", "kind": None, "whole": None, "float": None, "truth": None},
    ]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the column list holds list<")
