"""Images in Hugging Face's Parquet files become files in the landing folder, by split and label."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_assets.jobs.unpack_parquet import split_of, unpack, unpack_parquet
from resources.files.image_folder import PART_PREFIX, ImageFolder
from tests.support.images import png, put

CLASSES = {"info": {"features": {"label": {"names": ["roses", "tulips"], "_type": "ClassLabel"}}}}


def write(file: Path, *images: tuple[str | None, bytes | None, int | None]) -> None:
    """Writes paths, bytes and class numbers as Hugging Face does."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([{"bytes": content, "path": path} for path, content, _ in images], struct),
        "label": pa.array([label for *_, label in images], pa.int64()),
    }
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(CLASSES)}), file)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_images_are_written_by_split_and_label_and_only_once(tmp_path: Path) -> None:
    data, landing = tmp_path / "data", tmp_path / "landing"
    write(data / "train-00000-of-00001.parquet", ("x/a.png", png(0), 0), ("y/a.png", png(1), 0), (None, png(2), 1))
    write(data / "validation-00000-of-00001.parquet", ("a.png", png(3), None), ("b.png", None, 0), ("c", b"text", 0))
    write(data / "unsplit-00000-of-00001.parquet", ("d", png(4), 1))
    folder = ImageFolder(root=str(landing))
    counts = unpack(f"{data}/*.parquet", folder)
    left_out = {"without_bytes": 1, "no_image": 1}
    assert counts == {"written": 5, "without_label": 1, **left_out}
    found = files(landing)
    (again,) = (name for name in found if name.startswith("train/roses/a-"))
    assert found == {
        "train/roses/a.png": png(0),
        again: png(1),
        "train/tulips/image-0000002.png": png(2),
        "val/a.png": png(3),
        "d.png": png(4),
    }
    assert unpack(f"{data}/*.parquet", folder) == {"unchanged": 5, "without_label": 1, **left_out}
    (landing / "train" / "roses" / "a.png").write_bytes(b"somebody's own")
    of_killed_run = put(landing, f"train/roses/{PART_PREFIX}0123", png(0)[:20])
    assert unpack(f"{data}/*.parquet", folder)["written"] == 1
    assert not of_killed_run.exists()
    assert files(landing)["train/roses/a.png"] == b"somebody's own"


def test_without_splits_there_is_a_folder_for_each_label(tmp_path: Path) -> None:
    write(tmp_path / "data" / "flowers.parquet", ("a.png", png(0), 0), ("b.png", png(1), 1), ("../../c.png", png(2), 1))
    unpack(str(tmp_path / "data" / "flowers.parquet"), ImageFolder(root=str(tmp_path / "landing")))
    assert set(files(tmp_path / "landing")) == {"roses/a.png", "tulips/b.png", "tulips/c.png"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "training"),
        ("0001.Validation.parquet", "validation"),
        ("my_test.parquet", "test"),
        ("constraint.parquet", None),
        ("default/test/0000.parquet", "test"),
        ("test_data/0000.parquet", None),
    ],
)
def test_the_files_name_tells_the_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    landing = ImageFolder(root=str(tmp_path / "landing"))
    with pytest.raises(FileNotFoundError, match="does not exist: expected a Parquet file"):
        unpack(f"{tmp_path}/*.parquet", landing)
    pq.write_table(pa.table({"path": ["a.png"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected a column image with bytes and path, found the columns path"):
        unpack(f"{tmp_path}/a.parquet", landing)
    (tmp_path / "b.parquet").write_bytes(b"text")
    with pytest.raises(ValueError, match="b.parquet cannot be unpacked: it is not a Parquet file"):
        unpack(f"{tmp_path}/b.parquet", landing)


@pytest.mark.parametrize(
    "source",
    [
        "http://10.0.0.5/a.parquet",
        "simplecache::http://10.0.0.5/a.parquet",
        "s3://bucket/a.parquet::http://10.0.0.5/a.parquet",
        "file:///a.parquet::http://10.0.0.5/a.parquet",
        "sftp://host/*.parquet",
    ],
)
def test_other_servers_are_never_asked(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="expected a local path or s3://…, without ::"):
        unpack(source, ImageFolder(root=str(tmp_path / "landing")))


def classes(features: object) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": features}})}


@pytest.mark.parametrize(
    ("columns", "features", "folders"),
    [
        ({"labels": [0, 1]}, {"labels": {"names": ["a", "b"], "_type": "ClassLabel"}}, {"a", "b"}),
        ({"fine": [0, 1]}, {"fine": {"names": ["a", "b"], "_type": "ClassLabel"}}, {"a", "b"}),
        ({"label": ["a", "b"]}, {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}, {"a", "b"}),
        ({"label": [-1, 7]}, {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}, {".", "7"}),
        ({"label": [["a"], ["b"]], "objects": [[{"x": 1}], []]}, {"objects": [{"x": {}}]}, {"."}),
        ({"score": [1.5, 2.5]}, None, {"."}),
    ],
)
def test_the_label_is_found_whatever_its_column_is_called(
    tmp_path: Path, columns: dict, features: object, folders: set[str]
) -> None:
    images = pa.array([{"bytes": png(number), "path": f"{number}.png"} for number in range(2)])
    table = pa.table({"image": images, **columns}).replace_schema_metadata(classes(features))
    pq.write_table(table, tmp_path / "a.parquet")
    counts = unpack(str(tmp_path / "a.parquet"), ImageFolder(root=str(tmp_path / "landing")))
    assert counts["without_label"] == (2 if folders == {"."} else folders.issuperset({"."}))
    assert {str(Path(name).parent) for name in files(tmp_path / "landing")} == folders


def test_what_a_listing_would_skip_is_left_out_and_counted(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(number), "path": f"{number}.png"} for number in range(3)])
    labels = ["thumbnails", ".roses", "roses"]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "a.parquet")
    landing = ImageFolder(root=str(tmp_path / "landing"))
    assert unpack(str(tmp_path / "a.parquet"), landing) == {"written": 1, "excluded": 2}
    assert list(files(tmp_path / "landing")) == ["roses/2.png"]
    assert len(landing.list_names().names) == 1


def test_a_link_that_leads_elsewhere_is_another_file_of_that_name(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", ("a.png", png(0), 0), ("b.png", png(1), 0))
    linked, landing = tmp_path / "linked", tmp_path / "landing"
    for name, content in {"a.png": png(0), "b.png": png(1)}.items():
        put(linked, name, content)
        (landing / "roses").mkdir(parents=True, exist_ok=True)
        (landing / "roses" / name).symlink_to(linked / name)
    folder = ImageFolder(root=str(landing), link_roots=[str(linked)])
    assert unpack(str(tmp_path / "data" / "a.parquet"), folder) == {"unchanged": 2}
    assert unpack(str(tmp_path / "data" / "a.parquet"), ImageFolder(root=str(landing))) == {"written": 2}
    assert len(files(landing)) == 4


@pytest.mark.parametrize(
    "image", [{"bytes": "text", "path": "a"}, {"bytes": [1, 2], "path": "a"}, {"bytes": b"a", "path": 1}]
)
def test_images_of_other_types_are_refused(tmp_path: Path, image: dict) -> None:
    pq.write_table(pa.table({"image": [image]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected a column image of bytes .binary. and path .string., found bytes: "):
        unpack(str(tmp_path / "a.parquet"), ImageFolder(root=str(tmp_path / "landing")))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", ("a.png", png(0), 0))
    file = tmp_path / "data" / "a.parquet"
    file.write_bytes(b"PAR1" + b"\xff" * 60 + file.read_bytes()[64:])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be unpacked: it is not a Parquet file, or it is damaged"):
        unpack(str(file), ImageFolder(root=str(tmp_path / "landing")))


def test_the_job_unpacks(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test.parquet", ("a.png", png(0), 0))
    result = unpack_parquet.execute_in_process(
        run_config={"ops": {"unpack_images": {"config": {"source": f"{tmp_path}/data/test.parquet"}}}},
        resources={"image_folder": ImageFolder(root=str(tmp_path / "landing"))},
    )
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["written"].value == 1
    assert set(files(tmp_path / "landing")) == {"test/roses/a.png"}
