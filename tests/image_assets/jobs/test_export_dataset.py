"""An export holds every image with its label, split and prediction, and its import gives the same labels."""

import csv
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from image_assets.data.given_labels import GivenLabel, label_rows, read_given
from image_assets.jobs.dataset_formats import FORMATS, UNFINISHED_MARK, FormatName
from image_assets.jobs.export_dataset import ExportConfig, Report, export, export_dataset, to_filters
from image_assets.jobs.unpack_parquet import unpack
from image_assets.predictions.image_filters import Filters
from image_assets.predictions.image_index import read_index
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS
from resources.delta.external_table import ExternalTable
from resources.files.file_system import to_path, uncached_file_system
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from tests.gallery.small_home import append, featured, landed, predicted
from tests.support.images import png
from tests.support.tables import tables_at

# The file in the landing folder: its label, its split.
FILES = {
    "roses/a.png": ("roses", "training"),
    "roses/b c.png": ("roses", "validation"),
    "roses/d.png": ("roses", "test"),
    "tulips/a.png": ("tulips", "training"),
    "tulips/A.png": ("tulips", "training"),
    "tulips/100%.png": ("tulips", "test"),
    "more/é.png": ("tulips", None),
    "top.png": (None, None),
}
LABELS = ("roses", "tulips")
LABEL_TABLES: dict[FormatName, str] = {
    "image_folder": "images.csv",
    "coco": "annotations/instances_*.json",
    "hugging_face": "data/*.parquet",
    "label_studio": "tasks.json",
}


class Home:
    """A landing folder and its tables; version 1 predicts `roses` for all, with a table of labels and parts."""

    def __init__(self, folder: Path, *, in_table: bool = True) -> None:
        self.landing, self.out = folder / "photographs", folder / "export"
        self.tables = tables_at(folder / "tables")
        self.folder = ImageFolder(root=str(self.landing))
        self.contents = {name: png(number) for number, name in enumerate(FILES)}
        rows = [landed(self.landing, name, content, n) for n, (name, content) in enumerate(self.contents.items())]
        images = [
            {**featured(row, content, self.landing), "label": FILES[name][0], "content": content if in_table else None}
            for row, (name, content) in zip(rows, self.contents.items(), strict=True)
        ]
        append(self.tables, IMAGE_FILES, rows)
        append(self.tables, FEATURED_IMAGES, images)
        keys = ("path", "image_id", "label")
        splits = [
            {**{key: image[key] for key in keys}, "split": FILES[name][1]}
            for name, image in zip(FILES, images, strict=True)
        ]
        append(self.tables, IMAGE_SPLITS, splits)
        append(self.tables, IMAGE_PREDICTIONS, [predicted(image, 1, "roses", 0.75) for image in images])
        given = [{"path": image["path"], "label": image["label"], "state": "given"} for image in images]
        given[0]["attributes"] = [("part", "7, 8"), ("id", "k")]
        append(self.tables, GIVEN_LABELS, given)

    def export(self, format: FormatName = "image_folder", **config: Any) -> Report:
        folder = {"folder": str(self.out), **config}
        return export(
            self.tables, read_index(self.tables), ExportConfig(format=format, **folder), self.folder, log=print
        )

    def files(self) -> set[str]:
        return {str(file.relative_to(self.out)) for file in self.out.rglob("*") if file.is_file()}

    def read_json(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("export"))


@pytest.fixture
def home(shared_home: Home, tmp_path: Path) -> Home:
    """The shared home with a folder to export to."""
    shared_home.out = tmp_path / "flowers"
    return shared_home


def imported(source: str, landing: Path, names: Collection[str]) -> dict[str, GivenLabel]:
    """What a label table gives the files of a landing folder, by relative path."""
    table, path = ExternalTable(source=source), to_path(str(landing).encode())
    rows = table.read_all()
    files = {to_path(str(landing / name).encode()) for name in names}
    given = read_given(label_rows(rows, table, path), path, files, rows.problems)
    return {found.removeprefix(f"{path}/").replace("%25", "%"): label for found, label in given.items()}


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "hugging_face"])
def test_an_imported_export_has_the_same_labels_splits_and_images(home: Home, format: FormatName) -> None:
    report = home.export(format)
    assert report.images == {"training": 3, "validation": 1, "test": 2, "none": 2}
    names = {name for name in home.files() if name.endswith(".png")}
    given = imported(f"{home.out}/{LABEL_TABLES[format]}", home.out, names)
    assert set(given) == names
    name_of = {content: name for name, content in home.contents.items()}
    assert {name_of[(home.out / name).read_bytes()]: label.label for name, label in given.items()} == {
        name: label for name, (label, _) in FILES.items()
    }
    assert {label.state for label in given.values()} == {"given", "empty"}
    for name, label in given.items():
        original = name_of[(home.out / name).read_bytes()]
        split = FILES[original][1]
        assert name.partition("/")[0] == (
            {"training": "train", "validation": "val"}.get(split, split) if split else name
        )
        attributes = dict(label.attributes or {})
        assert attributes.pop("split", None) == split
        assert attributes.pop("part", None) == ("7, 8" if original == "roses/a.png" else None)
        assert (attributes["predicted_label"], attributes["probability"]) == ("roses", "0.75")


def test_an_image_folder_has_a_folder_for_each_label_of_each_split(home: Home) -> None:
    home.export("image_folder")
    a_again = next(name for name in home.files() if name.lower().startswith("train/tulips/a-"))
    assert home.files() == {
        "train/roses/a.png",
        "val/roses/b c.png",
        "test/roses/d.png",
        "train/tulips/A.png",
        a_again,
        "test/tulips/100%.png",
        "é.png",
        "top.png",
        "images.csv",
        "export.json",
    }
    rows = [*csv.DictReader(io.StringIO((home.out / "images.csv").read_text()))]
    assert rows[0] == {
        "path": "train/roses/a.png",
        "label": "roses",
        "split": "training",
        "predicted_label": "roses",
        "probability": "0.75",
        "model_version": "1",
        "part": "7, 8",
        "id": "k",
    }
    mark = home.read_json("export.json")
    assert (mark["complete"], mark["images"], mark["left_out"]) == (
        True,
        {"training": 3, "validation": 1, "test": 2, "none": 2},
        {},
    )


def test_coco_has_a_category_for_each_image_and_results_for_predictions(home: Home) -> None:
    home.export("coco")
    found = home.read_json("annotations/instances_test.json")
    assert found["categories"] == [{"id": 1, "name": "roses"}, {"id": 2, "name": "tulips"}]
    names = {image["id"]: image["file_name"] for image in found["images"]}
    (named,) = (image for image in home.read_json("annotations/instances_train.json")["images"] if "given_id" in image)
    assert (named["id"] > 0, named["given_id"], named["part"]) == (True, "k", "7, 8")
    assert {names[of["image_id"]]: of["category_id"] for of in found["annotations"]} == {
        "test/d.png": 1,
        "test/100%.png": 2,
    }
    for image, annotation in zip(found["images"], found["annotations"], strict=True):
        with Image.open(home.out / image["file_name"]) as opened:
            assert (image["width"], image["height"]) == opened.size
        assert annotation["bbox"] == [0, 0, image["width"], image["height"]]
    results = home.read_json("annotations/results/test.json")
    assert {(result["category_id"], result["score"]) for result in results} == {(1, 0.75)}
    unsplit = home.read_json("annotations/instances_unsplit.json")
    assert [image["file_name"] for image in unsplit["images"]] == ["é.png", "top.png"]
    assert len(unsplit["annotations"]) == 1


def test_label_studio_gets_tasks_with_annotations_and_predictions(home: Home) -> None:
    home.export("label_studio")
    tasks = {task["data"]["image"]: task for task in home.read_json("tasks.json")}
    task = tasks["/data/local-files/?d=flowers/test/100%25.png"]
    choice = {"from_name": "label", "to_name": "image", "type": "choices"}
    assert task["annotations"] == [{"result": [{**choice, "value": {"choices": ["tulips"]}}]}]
    (guess,) = task["predictions"]
    assert guess["model_version"] == "image_classifier 1"
    assert (guess["score"], guess["result"]) == (0.75, [{**choice, "value": {"choices": ["roses"]}}])
    assert "annotations" not in tasks["/data/local-files/?d=flowers/top.png"]
    assert '<Choice value="tulips"/>' in (home.out / "labeling_interface.xml").read_text()


def test_hugging_faces_parquet_has_bytes_paths_and_class_names(home: Home) -> None:
    home.export("hugging_face")
    assert home.files() == {"export.json"} | {
        f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test", "unsplit")
    }
    table = pq.read_table(home.out / "data" / "train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["roses", "tulips"], "_type": "ClassLabel"}
    rows = table.to_pylist()
    assert [(row["image"]["path"], row["label"]) for row in rows] == [
        ("roses/a.png", 0),
        ("tulips/A.png", 1),
        ("tulips/a.png", 1),
    ]
    assert all(row["image"]["bytes"] == home.contents[row["image"]["path"]] for row in rows)
    assert (rows[0]["predicted_label"], rows[0]["part"], rows[1]["part"]) == (0, "7, 8", None)
    # Its paths are those of the landing folder, so that its labels can be given back.
    given = imported(f"{home.out}/data/*.parquet", home.landing, FILES)
    assert {name: label.label for name, label in given.items()} == {name: label for name, (label, _) in FILES.items()}


def test_hugging_faces_parquet_is_unpacked_to_the_same_images(home: Home, tmp_path: Path) -> None:
    home.export("hugging_face")
    assert unpack(f"{home.out}/data/*.parquet", ImageFolder(root=str(tmp_path / "landing"))) == {
        "written": len(FILES),
        "without_label": 1,
    }
    home.export("image_folder", folder=str(tmp_path / "image_folder"))
    folders = [
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.png")}
        for name in ("landing", "image_folder")
    ]
    assert folders[0] == folders[1]


def test_large_datasets_are_several_parquet_files(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_assets.jobs.dataset_formats.SHARD_BYTES", 2 * max(map(len, home.contents.values())))
    home.export("hugging_face", filter="split=training")
    files = sorted((home.out / "data").iterdir())
    assert [file.name for file in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert [pq.read_metadata(file).num_rows for file in files] == [2, 1]


@pytest.mark.parametrize(
    ("filter", "names"),
    [
        ("split=test", {"roses/d.png", "tulips/100%.png"}),
        ("?label=tulips&split=training", {"tulips/a.png", "tulips/A.png"}),
        ("http://127.0.0.1:4000/?attribute=part%3D7%2C+8", {"roses/a.png"}),
        ("http://127.0.0.1:4000/", {*FILES}),
        ("labelled=none&page=3", {"top.png"}),
    ],
)
def test_a_filter_of_the_gallery_selects_images(home: Home, filter: str, names: set[str]) -> None:
    home.export("hugging_face", filter=filter)
    tables = [pq.read_table(file) for file in (home.out / "data").iterdir()]
    assert {row["image"]["path"] for table in tables for row in table.to_pylist()} == names


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ("splits=test", "the filter has 'splits': expected answer, apart, attribute"),
        ("test", "the filter has 'test': expected"),
        ("split=tests", "the filter cannot be used: split is 'tests'"),
        ("label=daisies", "no image matches the filter 'label=daisies'"),
        ("version=99", "version 99 has no predictions, so nothing was written: expected 1"),
    ],
)
def test_a_filter_that_selects_nothing_is_an_error(home: Home, filter: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        home.export(filter=filter)
    assert not home.out.exists()


def test_no_filter_selects_all_current_images() -> None:
    assert to_filters("") == to_filters("?") == Filters()


def test_a_folder_is_only_replaced_if_it_holds_an_export(home: Home) -> None:
    home.out.mkdir()
    (home.out / UNFINISHED_MARK).touch()  # all that a full disk had space for
    home.export("coco")
    with pytest.raises(FileExistsError, match="holds an export of .* set overwrite to true"):
        home.export()
    assert "annotations/instances_train.json" in home.files()
    (home.out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"also holds notes\.txt, which is not part of the export"):
        home.export(overwrite=True)
    (home.out / "notes.txt").rename(home.out / "train" / "notes.txt")
    with pytest.raises(
        FileExistsError, match=r"/train has (\d) files, but the export wrote \d, .* move the files away"
    ):
        home.export(overwrite=True)
    (home.out / "train" / "notes.txt").unlink()
    home.export(overwrite=True)
    assert "train/roses/a.png" in home.files()
    assert not any(name.startswith("annotations") for name in home.files())


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_with_anything_else_is_left_alone(home: Home, overwrite: bool) -> None:
    home.out.mkdir()
    (home.out / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty and holds no earlier export, so nothing was written"):
        home.export(overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file: choose a folder"):
        home.export(folder=str(home.out / "thesis.txt"), overwrite=overwrite)
    for folder in ("file:///srv/flowers", "s3:/bucket"):
        with pytest.raises(ValueError, match="expected a folder such as /srv/flowers, or a URL such as s3://…"):
            home.export(folder=folder, overwrite=overwrite)
    for folder in (home.landing, home.landing / "new", home.landing.parent):
        with pytest.raises(ValueError, match="overlaps the landing folder"):
            home.export(folder=str(folder), overwrite=overwrite)
    assert home.files() == {"thesis.txt"}


class Killed(BaseException):
    """The end of an export's process."""


@pytest.mark.parametrize("url", ["{home.out}", "memory://exports/{home.out.parent.name}"])
def test_a_killed_export_is_repeated_and_what_others_put_there_is_kept(
    home: Home, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    folder = url.format(home=home)
    system, path = uncached_file_system(folder)

    def end(_: str) -> None:
        raise Killed

    monkeypatch.setattr("image_assets.jobs.export_dataset.PROGRESS_IMAGES", 2)
    config = ExportConfig(folder=folder, format="coco")
    with pytest.raises(Killed):
        export(home.tables, read_index(home.tables), config, home.folder, log=end)
    system.pipe_file(f"{path}/notes.txt", b"mine")
    with pytest.raises(FileExistsError, match=r"also holds notes\.txt, which is not part of the export"):
        home.export("image_folder", folder=folder)
    assert system.cat_file(f"{path}/notes.txt") == b"mine"
    system.rm(f"{path}/notes.txt")
    home.export("image_folder", folder=folder)
    names = {name.rpartition("/")[2] for name in system.ls(path, detail=False)}
    assert names == {"train", "val", "test", "é.png", "top.png", "images.csv", "export.json"}


def test_an_unfinished_export_of_an_earlier_release_is_named_as_such(home: Home) -> None:
    home.export()
    mark = {**home.read_json("export.json"), "entries": [], "complete": False}
    (home.out / "export.json").write_text(json.dumps(mark))
    with pytest.raises(FileExistsError, match=r"holds an unfinished export of an earlier release.*delete the folder"):
        home.export(overwrite=True)
    assert "images.csv" in home.files()


def test_large_files_are_copied_in_pieces(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_assets.jobs.export_dataset.LARGE_BYTES", 10)
    home.export()
    assert (home.out / "test" / "tulips" / "100%.png").read_bytes() == home.contents["tulips/100%.png"]
    monkeypatch.setattr("image_assets.jobs.export_dataset.MAX_PARQUET_BYTES", 10)
    assert len(home.export("hugging_face", overwrite=True).left_out) == len(FILES)


def test_an_export_to_object_storage_names_its_images_there(home: Home) -> None:
    home.export("label_studio", folder="memory://exports/flowers")
    home.export("label_studio", folder="memory://exports/flowers", overwrite=True)
    found = ExternalTable(source="memory://exports/flowers/tasks.json").read_all().rows
    assert "memory://exports/flowers/test/d.png" in found["path"].to_pylist()


@pytest.mark.parametrize(("in_table", "left_out"), [(True, []), (False, ["a.png", "d.png"])])
def test_bytes_of_a_file_that_changed_come_from_the_table_or_the_image_is_left_out(
    tmp_path: Path, in_table: bool, left_out: list[str]
) -> None:
    home = Home(tmp_path, in_table=in_table)
    (home.landing / "roses" / "a.png").write_bytes(b"another")
    (home.landing / "roses" / "d.png").unlink()
    report = home.export()
    assert sorted(Path(path).name for path in report.left_out) == left_out
    assert [*home.read_json("export.json")["left_out"]] == [*report.left_out]
    if in_table:
        assert (home.out / "train" / "roses" / "a.png").read_bytes() == home.contents["roses/a.png"]
    else:
        assert (report.images["training"], (home.out / "train" / "roses").exists()) == (2, False)


def test_the_job_exports(home: Home, tmp_path: Path) -> None:
    config = {"folder": str(home.out), "format": "coco", "filter": "split=test"}
    result = export_dataset.execute_in_process(
        run_config={"ops": {"export_images": {"config": config}}},
        resources={
            "delta_tables": home.tables,
            "image_folder": home.folder,
            "model_registry": ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"),
        },
    )
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    metadata = {name: value.value for name, value in output.step_output_data.metadata.items()}
    assert (metadata["images"], metadata["images_test"], metadata["left_out"]) == (2, 2, 0)
