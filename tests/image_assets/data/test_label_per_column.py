"""Label tables with one column of 0 and 1 for each label."""

from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from image_assets.data.given_labels import LabelRow, label_rows, read_given
from resources.delta.external_table import ExternalTable
from tests.support.label_rows import LANDING, rows_of


@pytest.mark.parametrize(("one", "zero"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), (" 1 ", ""), ("1", None)])
def test_one_column_of_0_and_1_per_label_gives_the_labels(one: str, zero: str | None) -> None:
    table = {"": ["0", "1", "2", "3"], "image": ["a", "b", "c", "d"], "unknown": [*[zero] * 3, ""], "note": [None] * 4}
    table |= {"MEL": [one, zero, zero, ""], " NV ": [zero, one, one, ""]}
    rows = rows_of(table)
    assert [(row.path, row.label) for row in rows] == [("a", "MEL"), ("b", "NV"), ("c", "NV"), ("d", "")]
    assert {(*row.attributes, row.problem) for row in rows} == {("",)}
    assert rows_of(table, label_column="MEL")[0].label == one.strip()
    assert rows_of(table, label_column="none")[0].attributes["MEL"] == one.strip()


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.parquet", "labels"])
def test_one_column_per_label_is_recognized_in_every_kind_of_table(name: str, tmp_path: Path) -> None:
    columns = pd.DataFrame({"image": ["ISIC_1", "ISIC_2"], "MEL": [1.0, 0.0], "NV": [False, True], "BCC": [0, 0]})
    source = tmp_path / name
    if name == "labels":
        write_deltalake(source, pa.Table.from_pandas(columns))
    else:
        write = {".csv": columns.to_csv, ".jsonl": partial(columns.to_json, orient="records", lines=True)}
        write.get(source.suffix, columns.to_parquet)(source)
    table = ExternalTable(source=str(source))
    rows = label_rows(table.read_all(), table, LANDING)
    found = read_given(rows, LANDING, {f"{LANDING}/{number}/ISIC_{number}.jpg" for number in (1, 2)})
    assert {path: (of.label, of.state, of.matched_by, of.attributes) for path, of in found.items()} == {
        f"{LANDING}/1/ISIC_1.jpg": ("MEL", "given", "no_suffix, no_folder", None),
        f"{LANDING}/2/ISIC_2.jpg": ("NV", "given", "no_suffix, no_folder", None),
    }


def test_columns_of_0_and_1_beside_a_column_of_labels_are_attributes() -> None:
    (row,) = rows_of({"image": ["a"], "Class": ["roses"], "flash": ["1"], "tripod": ["0"]})
    assert row == LabelRow(2, "a", "roses", {"flash": "1", "tripod": "0"})


def test_a_row_with_several_1s_or_none_is_named_and_the_others_count() -> None:
    names = ["a", "b", "c", "d", "", "a"]
    rows = rows_of({"image": names, "MEL": ["1", "1", "0", "0", "", "0"], "NV": ["0", "1", "0", "1", "1", "1"]})
    files = {f"{LANDING}/ISIC/{name}.jpg": name for name in "abcd"}
    found = {files.get(path, path): label for path, label in read_given(rows, LANDING, files).items()}
    assert {name: (label.state, label.label) for name, label in found.items()} == {
        "a": ("contradictory", None),
        "b": ("unusable", None),
        "c": ("unusable", None),
        "d": ("given", "NV"),
        "": ("unusable", None),
    }
    assert found["b"].message == "row 3: it has a 1 in several columns (MEL, NV): keep one"
    assert found["c"].message == "row 4: it has no 1 in any column: write one into that of its label"
    assert found[""].message == "row 6 without a path: add the path of a file"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"cat": "1101", "dog": "1110"},
            r"columns of 0 and 1 \(cat, dog\) with several 1s in 2 of 4 rows, such as row 2",
        ),
        ({"cat": "1000", "dog": "0000"}, r"columns of 0 and 1 \(cat, dog\) with no 1 in 3 of 4 rows, such as row 3: "),
        (
            {"cat": "1000", "dog": "0111", "part": "1123"},
            r"columns of 0 and 1 \(cat, dog\) and others \(part\): if the",
        ),
        ({"malignant": "0101"}, "expected one column called label, class, .* found the columns image, malignant"),
        (
            {"cat": "1000", "cat ": "0111"},
            "expected one column called label, .* found the columns image, cat, cat",
        ),
        ({"cat": "1002", "dog": "0111"}, "expected one column called label, .* found the columns image, cat, dog"),
        (
            {"train": "1010", "Test": "0101"},
            "expected one column called label, .* found the columns image, train, Test",
        ),
    ],
)
def test_columns_of_numbers_that_are_not_one_per_label_are_refused(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.* set IMAGE_ASSETS_LABEL_COLUMN to "):
        rows_of({"image": [*"abcd"], **{name: [*values] for name, values in columns.items()}})
