"""A label table says the labels in place of folders; people's corrections win over it; it can be taken away again."""

from collections.abc import Collection
from pathlib import Path
from unicodedata import normalize

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from pyspark.sql.types import StructType

from image_assets.data.data_checks import label_table_is_sound
from image_assets.data.featured_images import featured_images
from image_assets.data.folder_layout import FolderLayout
from image_assets.data.given_labels import (
    GivenLabel,
    LabelRow,
    given_attributes,
    given_labels,
    label_table_change,
    label_warnings,
    match_counts,
    merge_given_labels,
    read_given,
)
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_samples import image_samples
from image_assets.data.image_splits import image_splits
from image_assets.data.label_corrections import Correction, append_corrections
from image_assets.data.raw_images import raw_images
from image_assets.schemas import (
    FEATURED_IMAGES,
    GIVEN_LABELS,
    GRAYSCALE_IMAGES,
    IMAGE_FILES,
    IMAGE_SAMPLES,
    IMAGE_SPLITS,
)
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.delta.table import Table
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from resources.samples import SampleSize
from tests.gallery.small_home import append
from tests.support.images import png, put
from tests.support.label_rows import LANDING, rows_of
from tests.support.tables import tables_at

ASSETS = [raw_images, given_labels, featured_images, grayscale_images, image_samples, image_splits]
LABELED = (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)


def given(*rows: tuple[str | None, str | None], files: Collection[str] = ()) -> dict[str, GivenLabel]:
    """What rows of paths and labels come to."""
    listed = [LabelRow(number, path or "", label or "", {}) for number, (path, label) in enumerate(rows, 2)]
    return read_given(listed, LANDING, {f"{LANDING}/{file}" for file in files})


@pytest.mark.parametrize(
    ("rows", "state", "label", "message"),
    [
        ([("a", "roses")], "given", "roses", None),
        ([("a", "roses"), ("./a", "roses")], "given", "roses", None),
        (
            [("a", "roses"), ("a", "tulips")],
            "contradictory",
            None,
            "different labels in rows 2, 3 ('roses', 'tulips'): keep one",
        ),
        ([("a", "roses"), ("a", None)], "contradictory", None, "different labels in rows 2, 3 ('', 'roses'): keep one"),
        ([("a", None)], "empty", None, "lists the file without a label"),
        (
            [("a", "red/roses")],
            "unusable",
            None,
            "'red/roses' in row 2 is not a valid label: it must be a valid folder",
        ),
        ([("a", '["roses"]')], "unusable", None, "in row 2 is not a valid label: it is a list or an object"),
        ([("a", "{'x': 1}")], "unusable", None, "it is a list or an object: write the name of one label"),
        ([("a", "[other]")], "given", "[other]", ""),
        ([("a", "x" * 300)], "unusable", None, "in row 2 is not a valid label: it may have at most 255 bytes"),
        ([(None, "roses"), ("", "tulips")], "unusable", None, "rows 2, 3 without a path: add the path of a file"),
    ],
)
def test_what_rows_come_to(rows: list[tuple], state: str, label: str | None, message: str | None) -> None:
    (found,) = given(*rows).values()
    assert (found.state, found.label) == (state, label)
    assert found.message is None if message is None else message in str(found.message)


def test_an_empty_row_is_passed_over() -> None:
    assert given((None, ""), ("", None)) == {}


def test_a_path_that_may_be_that_of_several_files_is_not_guessed() -> None:
    found = given(("A.jpg", "roses"), files=["x/a.jpg", "y/a.jpg"])
    assert {path: label.state for path, label in found.items()} == {f"{LANDING}/A.jpg": "ambiguous"}
    message = str(found[f"{LANDING}/A.jpg"].message)
    assert f"the path in row 2 may be that of 2 files ({LANDING}/x/a.jpg, {LANDING}/y/a.jpg): write the" in message
    assert message.endswith("or put the table into its folder")


def test_rows_that_mean_one_file_in_several_ways_must_agree() -> None:
    assert given(("day\\a.jpg", "roses"), ("A", "roses"), files=["day/a.jpg"])[f"{LANDING}/day/a.jpg"].label == "roses"
    found = given(("day\\a.jpg", "roses"), ("A", "tulips"), files=["day/a.jpg"])[f"{LANDING}/day/a.jpg"]
    assert (found.state, found.label) == ("contradictory", None)


@pytest.mark.parametrize(
    "path", ["path", "Path", " file ", "filename", "FILE_NAME", "file name", "Image", "image-path"]
)
@pytest.mark.parametrize("label", ["label", "Class", "CATEGORY", "target ", "Class Name"])
def test_usual_column_names_are_recognized_and_others_are_attributes(path: str, label: str) -> None:
    (row,) = rows_of({label: [" roses "], "Part No": ["7"], path: ["a.jpg"], "empty": [" "], "": ["0"]})
    assert row == LabelRow(2, "a.jpg", "roses", {"Part No": "7"})


def test_settings_name_other_columns() -> None:
    table: dict[str, list[str | None]] = {"path": ["x"], "foto": ["a.jpg"], "Sorte": ["roses"]}
    (row,) = rows_of(table, path_column="foto", label_column="Sorte")
    assert row == LabelRow(2, "a.jpg", "roses", {"path": "x"})
    (row,) = rows_of(table, path_column="foto", label_column="none")
    assert row == LabelRow(2, "a.jpg", "", {"path": "x", "Sorte": "roses"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["foto", "label"],
            "one column called path, .*, found the columns foto, label: set IMAGE_ASSETS_P.*, or add a first",
        ),
        (
            ["path", "sort"],
            "expected one column called label, class, .*, found the columns path, sort: set IMAGE_ASSETS_L",
        ),
        (["path", "label", "Label"], "found the columns path, label, Label: set IMAGE_ASSETS_LABEL_COLUMN"),
    ],
)
def test_a_table_without_its_two_columns_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of({name: ["a"] for name in names})


class Home:
    """A landing folder by days, its tables, and a label table."""

    def __init__(self, tables: DeltaTables, folder: ImageFolder) -> None:
        self.tables, self.folder, self.source = tables, folder, ""
        self.instance = dg.DagsterInstance.ephemeral()

    def run(self) -> dict[str, object]:
        """The metadata of given_labels."""
        resources = {
            "delta_tables": self.tables,
            "image_folder": self.folder,
            "duplicate_rules": DuplicateRules(),
            "sample_size": SampleSize(),
            "label_table": ExternalTable(source=self.source),
        }
        run = dg.materialize([*ASSETS, label_table_is_sound], resources=resources, instance=self.instance)
        self.check = run.get_asset_check_evaluations()[0]
        (made,) = run.asset_materializations_for_node("given_labels")
        return {name: value.value for name, value in made.metadata.items()}

    def labels(self, table: Table) -> dict[str, str | None]:
        rows = self.tables.read(table, ["path", "label"]).to_pylist()
        return {row["path"].rpartition("/")[2]: row["label"] for row in rows}

    def give(self, folder: Path, *rows: tuple[str, str | None]) -> None:
        """Another version of the label table, a Delta table."""
        self.source = str(folder / "labels")
        columns = {"path": [path for path, _ in rows], "label": pa.array([label for _, label in rows], pa.string())}
        write_deltalake(self.source, pa.table(columns), mode="overwrite")

    def correct(self, name: str, label: str | None, *, withdrawn: bool = False) -> None:
        rows = self.tables.read(FEATURED_IMAGES, ["path", "image_id"]).to_pylist()
        (row,) = (row for row in rows if row["path"].endswith(name))
        correction = Correction(**row, label=label, former_label=None, corrected_by="Ada", withdrawn=withdrawn)
        append_corrections(self.tables, [correction])


@pytest.mark.slow
@pytest.mark.spark
def test_a_label_table_counts_everywhere_and_only_what_it_changes_changes(
    delta_tables: DeltaTables, image_folder: ImageFolder, landing: Path, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        put(landing, f"monday/{name}" if number % 2 else name, png(number))
    home = Home(delta_tables, image_folder)
    assert home.run()["dagster/row_count"] == 0
    assert home.labels(FEATURED_IMAGES) == {name: "monday" if n % 2 else None for n, name in enumerate(names)}
    assert home.check.passed

    paths = [f"monday/{name}" if n % 2 else str(landing / name) for n, name in enumerate(names)]
    labels: list[str | None] = ["roses", "tulips", "roses", "tulips", "roses", "tulips"]
    home.give(tmp_path, *zip(paths, labels, strict=False), ("tuesday/later.png", "roses"))
    metadata = home.run()
    assert (metadata["label_table_version"], metadata["label_table_content"]) == ("Delta version 0", "Delta version 0")
    assert (metadata["files_given"], metadata["files_unnamed"], metadata["files_not_there"]) == (7, 2, 1)
    expected = dict(zip(names, [*labels, None, None], strict=True))
    for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES):
        assert home.labels(table) == expected, table.name
    assert home.labels(IMAGE_SAMPLES) == expected
    assert home.labels(IMAGE_SPLITS) == {name: expected[name] for name in expected if expected[name] or name == "7.png"}
    assert (home.check.passed, home.check.metadata["not_there"].value) == (False, 1)

    versions = {table.name: delta_tables.newest_version(table) for table in (*LABELED, GIVEN_LABELS)}
    assert home.run()["changed"] == 0
    assert {table.name: delta_tables.newest_version(table) for table in (*LABELED, GIVEN_LABELS)} == versions

    put(landing, "tuesday/later.png", png(20))
    put(landing, "tuesday/unnamed.png", png(21))
    labels[0] = "tulips"
    home.correct("/1.png", "peonies")
    home.correct("/2.png", "wrong")
    home.correct("/2.png", None, withdrawn=True)
    home.give(tmp_path, *zip(paths, labels, strict=False), ("tuesday/later.png", "roses"), (paths[5], "roses"))
    metadata = home.run()
    assert (
        metadata["changed"] == 3
    )  # a label, a contradiction, a file that is not named; the one that was waited for is not
    expected |= {"0.png": "tulips", "1.png": "peonies", "2.png": "roses", "5.png": None}
    expected |= {"later.png": "roses", "unnamed.png": None}
    assert home.labels(FEATURED_IMAGES) == expected
    assert (home.check.metadata["contradictory"].value, home.check.metadata["not_there"].value) == (1, 0)
    assert label_table_change(home.instance, ExternalTable(source=home.source)) == ""

    home.source = ""
    assert label_table_change(home.instance, ExternalTable()) == "no label table any more"
    home.run()
    folders = {name: "monday" if n % 2 else None for n, name in enumerate(names)}
    folders |= {"1.png": "peonies", "later.png": "tuesday", "unnamed.png": "tuesday"}
    assert home.labels(FEATURED_IMAGES) == folders
    assert home.check.passed
    assert label_table_change(home.instance, ExternalTable()) == ""


def test_matches_and_attributes_are_kept_without_spark(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    files = [f"{LANDING}/roses/{name}.jpg" for name in ("a", "b", "c")]
    append(tables, IMAGE_FILES, [{"path": path, "state": "current"} for path in files])
    rows = [
        LabelRow(2, "roses\\A.JPG", "Roses", {"part": "1"}),
        LabelRow(3, "roses/b.jpg", "roses", {"part": "2", "day": "Monday"}),
        LabelRow(4, "c", "nan", {}),
    ]
    found = read_given(rows, LANDING, {*files}, ["row 9 has 1 of 3 columns"])
    assert merge_given_labels(tables, found, FolderLayout(LANDING)) == 4
    assert merge_given_labels(tables, found, FolderLayout(LANDING)) == 0
    assert match_counts(tables) == {"backslashes": 1, "case": 1, "no_folder": 1, "no_suffix": 1}
    assert given_attributes(tables, "part") == {files[0]: "1", files[1]: "2"}
    assert given_attributes(tables, "day") == {files[1]: "Monday"}
    assert label_warnings(tables) == [
        "labels differ only in capital letters, spaces or Unicode form: 'Roses' (1), 'roses' (1); "
        "write them the same way",
        "'nan' (1) does not look like a label: leave it empty",
    ]
    check = label_table_is_sound(tables)
    assert (check.passed, check.metadata["unusable"].value, check.metadata["matched_by_case"].value) == (False, 1, 1)

    assert merge_given_labels(tables, found, FolderLayout(LANDING), label_column="none") == 3
    labels = tables.read(GIVEN_LABELS, ["path", "label", "state"]).to_pylist()
    assert {(row["label"], row["state"]) for row in labels if row["path"]} == {("roses", "folder")}
    assert given_attributes(tables, "part") == {files[0]: "1", files[1]: "2"}

    assert merge_given_labels(tables, None, FolderLayout(LANDING)) == 4
    assert (match_counts(tables), given_attributes(tables, "part")) == ({}, {})


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        (["roses", "Roses"], True),
        (["red roses", "red  roses"], True),
        ([normalize("NFC", "café"), normalize("NFD", "café")], True),
        (["roses|red"], True),
        (["roses", "red", "roses, red"], True),
        (["NaN"], True),
        (["daisy, common", "roses"], False),
        (["none", "unknown", "scratch"], False),  # labels of their own
    ],
)
def test_labels_that_look_like_mistakes_are_warned_about(tmp_path: Path, labels: list[str], warned: bool) -> None:
    tables = tables_at(tmp_path)
    rows = [{"path": f"{n}", "label": label, "state": "given"} for n, label in enumerate(labels)]
    append(tables, GIVEN_LABELS, rows)
    append(tables, IMAGE_FILES, [{"path": row["path"], "state": "current"} for row in rows])
    assert bool(label_warnings(tables)) == warned
    assert label_table_is_sound(tables).passed != warned


def test_a_table_of_an_earlier_release_gets_the_new_columns(tmp_path: Path) -> None:
    tables = tables_at(tmp_path)
    earlier = Table("given_labels", ("path",), StructType(GIVEN_LABELS.columns.fields[:4]))
    append(tables, earlier, [{"path": f"{LANDING}/a.jpg", "label": "roses", "state": "given"}])
    append(tables, IMAGE_FILES, [{"path": f"{LANDING}/a.jpg", "state": "current"}])
    row = LabelRow(2, "a.jpg", "roses", {"part": "1"})
    assert merge_given_labels(tables, read_given([row], LANDING, {f"{LANDING}/a.jpg"}), FolderLayout(LANDING)) == 1
    assert given_attributes(tables, "part") == {f"{LANDING}/a.jpg": "1"}


def test_a_spreadsheets_table_is_read_and_what_was_guessed_is_said(tmp_path: Path, landing: Path) -> None:
    tables, folder = tables_at(tmp_path / "tables"), ImageFolder(root=str(landing))
    files = [f"{folder.path}/day 1/{normalize('NFD', 'café')}.jpg", f"{folder.path}/day 1/b.JPG"]
    append(tables, IMAGE_FILES, [{"path": path, "state": "current"} for path in files])
    table = tmp_path / "labels.csv"
    table.write_bytes(
        "Path;Class;Teil\r\nday 1\\café.jpg;rosé;7\r\nday 1\\b;tulips\r\nday 1\\b;tulips;8\r\n".encode("cp1252")
    )
    resources = {"delta_tables": tables, "image_folder": folder, "label_table": ExternalTable(source=str(table))}
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([given_labels], resources=resources, instance=instance)
        logged = [entry.user_message for entry in instance.all_logs(run.run_id)]
    (made,) = run.asset_materializations_for_node("given_labels")
    metadata = {name: value.value for name, value in made.metadata.items()}
    assert "line 2 is not UTF-8 and read as Windows-1252 (cp1252), a guess" in str(metadata["notes"])
    assert any("read as Windows-1252" in line for line in logged)
    assert any("2 by backslashes, 1 by no_suffix, 1 by unicode_form" in line for line in logged)
    assert {name: count for name, count in metadata.items() if name.startswith("matched_by")} == {
        "matched_by_backslashes": 2,
        "matched_by_no_suffix": 1,
        "matched_by_unicode_form": 1,
    }
    rows = {row["path"]: row for row in tables.read(GIVEN_LABELS, ["path", "label", "message"]).to_pylist()}
    assert {path: row["label"] for path, row in rows.items()} == {files[0]: "rosé", files[1]: "tulips", "": None}
    assert rows[""]["message"] == "row 3 has 2 of 3 columns: add the others"
    assert given_attributes(tables, "Teil") == {files[0]: "7", files[1]: "8"}
