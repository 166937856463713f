"""Which label and split the folders of a file give, when first-level folders are splits, and what is advised."""

import unicodedata
from pathlib import Path

import pytest

from image_assets.data.folder_layout import (
    FolderLayout,
    advice,
    is_recorded,
    read_layout,
    record_layout,
    record_splits,
    same_but_for_spelling,
    to_given_splits,
)
from image_assets.data.image_files import Decision, merge_decisions
from image_assets.data.inspection import CURRENT, MISSING
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES
from resources.files.file_system import to_path
from resources.files.image_folder import ImageFolder
from tests.support.tables import tables_at

LANDING = "file:/photos"
ALL = frozenset({"training", "validation", "test"})


def paths(*names: str) -> list[str]:
    return [f"{LANDING}/{name}" for name in names]


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("file:/photos/ball/a.png", "ball"),
        ("file:/photos/ball/of 2024/a.png", "ball"),
        ("file:/photos/a ball (red)/a.png", "a ball (red)"),
        ("file:/photos/a.png", None),
        ("file:/photos//a.png", None),
        ("file:/photos//ball//a.png", "ball"),
        ("file:/photos of others/ball/a.png", None),
        ("file:/elsewhere/file:/photos/ball/a.png", None),
        ("file:/photos/line%0Abreak/a.png", "line\nbreak"),
        ("file:/photos/100%25/a.png", "100%"),
        ("file:/photos/%2525/a.png", "%25"),
        ("file:/photos/not %FF UTF-8/a.png", "not %FF UTF-8"),
        ("file:/photos/roses /a.png", "roses "),
        ("file:/photos/None/a.png", "None"),
        ("file:/photos/train/a.png", "train"),
    ],
)
def test_by_default_the_label_is_the_real_name_of_the_first_level_folder(path: str, label: str | None) -> None:
    layout = FolderLayout(LANDING)
    assert (layout.label(path), layout.given_split(path)) == (label, None)


@pytest.mark.parametrize("name", [b"line\nbreak", b"50%", b"a\rb", "café".encode(), b"%0A"])
def test_a_label_is_the_name_on_disk(name: bytes) -> None:
    assert FolderLayout("file:/photos").label(to_path(b"/photos/" + name + b"/a.png")) == name.decode()


@pytest.mark.parametrize(
    ("level", "labels"),
    [
        (1, ["photos", "photos", "photos", None]),
        (2, ["daisy", "roses", None, None]),
        (3, ["2023", None, None, None]),
        (-1, ["2023", "roses", "photos", None]),
        (-2, ["daisy", "photos", None, None]),
    ],
)
def test_the_level_says_which_folder_is_the_label(level: int, labels: list[str | None]) -> None:
    files = paths("photos/daisy/2023/a.png", "photos/roses/b.png", "photos/c.png", "d.png")
    assert [FolderLayout(LANDING, level).label(path) for path in files] == labels


@pytest.mark.parametrize(
    ("name", "label", "split"),
    [
        ("train/daisy/a.png", "daisy", "training"),
        ("Training/daisy/deep/a.png", "daisy", "training"),
        ("VAL/roses/a.png", "roses", "validation"),
        ("valid/roses/a.png", "roses", "validation"),
        ("validation/roses/a.png", "roses", "validation"),
        ("Testing/roses/a.png", "roses", "test"),
        ("test/a.png", None, "test"),
        ("new/a.png", "new", None),  # a folder that came later
        ("a.png", None, None),
        ("daisy/train/a.png", "daisy", None),
    ],
)
def test_split_folders_give_the_split_and_the_level_below_the_label(
    name: str, label: str | None, split: str | None
) -> None:
    layout = FolderLayout(LANDING, given_splits=ALL)
    assert (layout.label(f"{LANDING}/{name}"), layout.given_split(f"{LANDING}/{name}")) == (label, split)


def test_levels_are_counted_below_split_folders() -> None:
    name = f"{LANDING}/train/flowers/daisy/a.png"
    assert [FolderLayout(LANDING, level, given_splits=ALL).label(name) for level in (1, 2, 3, -1)] == [
        "flowers",
        "daisy",
        None,
        "daisy",
    ]


@pytest.mark.parametrize(
    ("folders", "setting", "before", "given"),
    [
        (["train", "val", "test"], "auto", "", "training validation test"),
        (["/train", "val"], "auto", "", "training validation"),
        (["Train", "VALID"], "auto", "", "training validation"),
        (["training", "testing"], "auto", "", "training test"),
        (["train", "training"], "auto", "", ""),  # one split only
        (["train"], "auto", "", ""),
        (["val", "test"], "auto", "", ""),  # nothing to train on
        (["train", "val", "bus"], "auto", "", ""),  # vehicles, or something else that is meant
        (["train", "val", "bus"], "on", "", "training validation"),
        (["train", "bus"], "on", "", "training"),
        (["train", "val", "test"], "off", "", ""),
        (["train", "val", "test"], "off", "training test", ""),
        (["train", "val", "new"], "auto", "training validation", "training validation"),  # it came later
        (["train"], "auto", "training test", "training"),
        (["daisy", "roses"], "auto", "training test", ""),
        (["daisy", "roses"], "on", "", ""),
        ([], "auto", "", ""),
    ],
)
def test_first_level_folders_are_splits_if_all_are_named_so(
    folders: list[str], setting: str, before: str, given: str
) -> None:
    files = paths(*(f"{folder}/daisy/a.png" for folder in folders), "directly.png", "/directly.png")
    assert to_given_splits(files, LANDING, setting, frozenset(before.split())) == frozenset(given.split())


@pytest.mark.parametrize("root", ["s3://bucket/photos", "/photos"])
def test_the_layout_is_recorded_by_the_ingestion_and_read_by_every_step(tmp_path: Path, root: str) -> None:
    tables, folder = tables_at(tmp_path), ImageFolder(root=root)
    assert read_layout(tables, folder) == FolderLayout(folder.path)
    ledger = [Decision(f"{folder.path}/{name}/daisy/a.png", CURRENT) for name in ("train", "val")]
    ledger += [Decision(f"{folder.path}/broken/a.png", "quarantined"), Decision(f"{folder.path}/gone/a.png", MISSING)]
    merge_decisions(tables, ledger)
    assert record_splits(tables, folder)
    layout = read_layout(tables, folder)
    assert layout == FolderLayout(folder.path, given_splits=frozenset({"training", "validation"}))
    assert layout.missing_splits == ("test",)
    assert "test images are taken from the training folder" in str(layout)
    version = tables.version(IMAGE_FILES)
    assert not record_splits(tables, folder)
    merge_decisions(tables, [Decision(f"{folder.path}/new/a.png", CURRENT)])
    assert not record_splits(tables, folder), "a folder that comes later does not relabel what is there"
    assert tables.version(IMAGE_FILES) == version + 1
    merge_decisions(tables, [Decision(f"{folder.path}/test/daisy/a.png", CURRENT)])
    assert record_splits(tables, folder)
    assert read_layout(tables, folder).given_splits == ALL
    assert read_layout(tables, folder.model_copy(update={"label_level": -1})).level == -1


def test_a_table_knows_whether_its_labels_are_those_of_the_layout(tmp_path: Path) -> None:
    tables, usual = tables_at(tmp_path), FolderLayout(LANDING)
    assert is_recorded(tables, FEATURED_IMAGES, usual)
    record_layout(tables, FEATURED_IMAGES, usual)
    assert tables.newest_version(FEATURED_IMAGES) is None, "nothing is written for the default"
    others = [
        FolderLayout(LANDING, 2),
        FolderLayout(LANDING, merged=True),
        FolderLayout(LANDING, given_splits=ALL),
        FolderLayout(LANDING, given_splits=frozenset({"training"})),
        usual,
    ]
    for layout in others:
        assert not is_recorded(tables, FEATURED_IMAGES, layout) or layout == others[-2]
        record_layout(tables, FEATURED_IMAGES, layout)
        assert [other for other in others if is_recorded(tables, FEATURED_IMAGES, other)] == [layout]


SPELLINGS = ["Roses", "roses", "roses ", " roses", "ROSES"]
CAFES = ["café", unicodedata.normalize("NFD", "café")]


def test_labels_that_look_the_same_are_found_and_merged_if_asked_for() -> None:
    assert same_but_for_spelling([*SPELLINGS, *CAFES, "tulips", "tulip"]) == [sorted(SPELLINGS), sorted(CAFES)]
    assert same_but_for_spelling(["daisy", "daisies"]) == []
    assert same_but_for_spelling(["Straße", "STRASSE"]) == []
    files = paths(*(f"{label}/a.png" for label in [*SPELLINGS, *CAFES]))
    assert [FolderLayout(LANDING).label(path) for path in files] == [*SPELLINGS, *CAFES]
    assert {FolderLayout(LANDING, merged=True).label(path) for path in files} == {"roses", "café"}


def test_labels_are_merged_into_the_usual_spelling() -> None:
    layout = FolderLayout(LANDING, merged=True)
    assert [layout.merge(label) for label in ("Κάκτος", "ΚΆΚΤΟΣ", "Weißdorn")] == ["κάκτος", "κάκτος", "weißdorn"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photos/daisy/a.png", "photos/roses/a.png"], "IMAGE_ASSETS_LABEL_LEVEL=2 if the labels are daisy, roses"),
        (["a/b/daisy/a.png", "a/b/roses/a.png"], "IMAGE_ASSETS_LABEL_LEVEL=3 if the labels are daisy, roses"),
        (
            ["2023/roses/a.png", "2024/daisy/a.png"],
            "look like years or dates (2023, 2024): set IMAGE_ASSETS_LABEL_LEVEL=2",
        ),
        (
            ["2023-05-01/roses/a.png", "20240102/daisy/a.png"],
            "IMAGE_ASSETS_LABEL_LEVEL=2 if the labels are daisy, roses",
        ),
        (["2023/a.png", "2024/a.png"], "or use a label table (IMAGE_ASSETS_LABELS)"),
        (["data/train/roses/a.png", "data/val/daisy/a.png"], "set IMAGE_ASSETS_LANDING to its folder 'data'"),
        (["train/a/x.png", "val/b/x.png", "bus/c/x.png"], "skip the other folders (bus) with IMAGE_ASSETS_EXCLUDE"),
        (["val/a/x.png", "test/b/x.png"], "named like splits (test, val): set IMAGE_ASSETS_SPLIT_FOLDERS=on"),
        (["daisy/a.png"], "all files have one label, 'daisy': put the photographs of each label into a folder"),
        (["a.png", "b.png"], "no file has a label"),
    ],
)
def test_odd_labels_come_with_a_suggestion(names: list[str], expected: str) -> None:
    (found,) = advice(paths(*names), FolderLayout(LANDING))
    assert expected in found


def test_a_level_that_gives_splits_comes_with_a_suggestion() -> None:
    files = paths("daisy/train/a.png", "roses/val/a.png")
    (found,) = advice(files, FolderLayout(LANDING, 2))
    assert "named like splits (train, val): set IMAGE_ASSETS_LABEL_LEVEL=1 if the labels are daisy, roses" in found


@pytest.mark.parametrize(
    "names", [["daisy/a.png", "roses/a.png"], ["0/a.png", "9/a.png"], ["1950s/a.png", "2/a.png"], []]
)
def test_plausible_labels_need_no_advice(names: list[str]) -> None:
    assert advice(paths(*names), FolderLayout(LANDING)) == []
