"""Names of exported files and folders: safe on every system, and unique."""

import csv
from io import BytesIO
from pathlib import Path

import pytest

from image_assets.jobs.dataset_formats import (
    Contents,
    ExportedImage,
    ExportFolder,
    FileNames,
    ImageFolderFormat,
    safe_name,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("roses/a b.png", "a b.png"),
        ("roses/rosé.png", "rosé.png"),
        ("roses/what?.png", "what_.png"),
        ("roses/a:b|c.png", "a_b_c.png"),
        ("roses/..png", "_..png"),
        ("roses/.png", "_.png"),
        ("roses/CON.png", "_CON.png"),
        ("roses/a.png ", "a.png"),
        ("roses/line\nbreak.png", "line_break.png"),
        (f"roses/{'é' * 200}.png", f"{'é' * 100}.png"),
    ],
)
def test_a_file_name_is_safe_on_every_system(path: str, name: str) -> None:
    assert safe_name(path) == name


def test_file_names_are_unique_on_systems_that_ignore_capital_letters() -> None:
    names = FileNames()
    found = [names.unique("train/", path, "abcdef" * 10) for path in ("x/a.png", "y/A.png", "a.png")]
    assert found == ["train/a.png", "train/A-abcdefab.png", "train/a-abcdefab-2.png"]


def test_labels_called_like_files_of_the_export_get_a_folder_beside_them(tmp_path: Path) -> None:
    labels = [".export", "Export.json", "images.csv", "roses", "a.png"]
    folder = ExportFolder(str(tmp_path))
    written = ImageFolderFormat(folder, Contents(labels, {None: 6}, {None: 6}, [], "model"))
    for number, label in enumerate(["", *labels]):
        keys = {"number": number, "table_path": "", "path": "a.png", "image_id": "0" * 64}
        facts = {"length": 1, "width": 1, "height": 1, "split": None, "attributes": {}}
        unknown = dict.fromkeys(("predicted_label", "probability", "model_version"))
        written.add(ExportedImage(label=label or None, **keys, **facts, **unknown), BytesIO(label.encode()))
    written.finish()
    folder.forget_started()
    with (tmp_path / "images.csv").open() as file:
        paths = {row["label"]: row["path"] for row in csv.DictReader(file)}
    assert paths["roses"] == "roses/a.png"
    assert paths["a.png"] == "a.png/a.png"
    read = {label: (tmp_path / path).read_text() for label, path in paths.items()}
    assert read == {label: label for label in ["", *labels]}
    assert not {"export.json", ".export"} & {entry.name.lower() for entry in tmp_path.iterdir()}
