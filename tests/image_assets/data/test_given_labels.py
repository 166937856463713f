"""A label table says the labels in place of folders; people's corrections win over it; it can be taken away again."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from image_assets.data.data_checks import label_table_is_sound
from image_assets.data.featured_images import featured_images
from image_assets.data.given_labels import given_labels, label_table_change, read_given, to_table_path
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_samples import image_samples
from image_assets.data.image_splits import image_splits
from image_assets.data.label_corrections import Correction, append_corrections
from image_assets.data.raw_images import raw_images
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, GRAYSCALE_IMAGES, IMAGE_SAMPLES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.external_table import ExternalTable
from resources.delta.table import Table
from resources.duplicates import DuplicateRules
from resources.files.image_folder import ImageFolder
from tests.support.images import png, put

ASSETS = [raw_images, given_labels, featured_images, grayscale_images, image_samples, image_splits]
LABELLED = (FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_SPLITS)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("roses/a b.png", "file:/photos/roses/a b.png"),
        ("./roses//a.png", "file:/photos/roses/a.png"),
        ("100%.png", "file:/photos/100%25.png"),
        ("/photos/100%.png", "file:/photos/100%25.png"),
        ("file:/photos/100%25.png", "file:/photos/100%25.png"),
        ("file:///photos/a.png", "file:/photos/a.png"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("", ""),
    ],
)
def test_a_file_is_named_below_the_folder_in_full_or_as_tables_do(name: str, path: str) -> None:
    assert to_table_path(name, "file:/photos") == path


@pytest.mark.parametrize(
    ("rows", "state", "label", "message"),
    [
        ([("a", "roses")], "given", "roses", None),
        ([("a", " roses "), ("./a ", "roses")], "given", "roses", None),
        (
            [("a", "roses"), ("a", "tulips")],
            "contradictory",
            None,
            "its rows have different labels ('roses', 'tulips'): keep one",
        ),
        (
            [("a", "roses"), ("a", None)],
            "contradictory",
            None,
            "its rows have different labels ('', 'roses'): keep one",
        ),
        ([("a", None)], "empty", None, "lists the file without a label"),
        ([("a", "  ")], "empty", None, "lists the file without a label"),
        ([("a", "red/roses")], "unusable", None, "'red/roses' is not a valid label: it must be a valid folder name"),
        ([("a", "x" * 300)], "unusable", None, "is not a valid label: it may have at most 255 bytes"),
        ([(None, "roses")], "unusable", None, "a row has a label but no path"),
    ],
)
def test_what_rows_come_to(rows: list[tuple], state: str, label: str | None, message: str | None) -> None:
    table = pa.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]})
    (given,) = read_given(table, "file:/photos").values()
    assert (given.state, given.label) == (state, label)
    assert given.message is None if message is None else message in str(given.message)


def test_an_empty_row_is_passed_over() -> None:
    table = pa.table({"path": pa.array([None, ""], pa.string()), "label": pa.array(["", None], pa.string())})
    assert read_given(table, "file:/photos") == {}


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

    versions = {table.name: delta_tables.newest_version(table) for table in (*LABELLED, GIVEN_LABELS)}
    assert home.run()["changed"] == 0
    assert {table.name: delta_tables.newest_version(table) for table in (*LABELLED, GIVEN_LABELS)} == versions

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
