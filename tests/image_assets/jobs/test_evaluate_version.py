"""A version is evaluated on whatever folder or table of labeled images people have."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from PIL import Image
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.jobs.evaluate_version import EvaluateConfig, evaluate_version, labeled_images, read_images
from image_assets.schemas import IMAGE_SPLITS, MODEL_EVALUATIONS
from resources.delta.delta_tables import DeltaTables
from resources.devices import InferenceDevice
from resources.files.image_folder import ImageFolder
from resources.mlflow.mlflow_tracking import MlflowTracking
from resources.mlflow.model_registry import ModelRegistry
from tests.support.brightness_version import LABELS, saved_brightness
from tests.support.image_files import saved
from tests.support.images import put
from tests.support.registered_versions import registered
from tests.support.tables import tables_at

LEVELS = {"bright/1.png": 250, "bright/2.png": 200, "bright/3.png": 140, "dark/1.png": 40, "dark/2.png": 180}


def gray(level: int) -> bytes:
    return saved(Image.new("RGB", (40, 30), (level,) * 3), "PNG")


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    """Images of a brightness, of which one has the wrong label, and files that are of no use."""
    contents = {name: gray(level) for name, level in LEVELS.items()}
    contents |= {"bright/broken.png": gray(1)[:60], "dusk/1.png": gray(100), "dusk/2.png": gray(90)}
    contents |= {"without label.png": gray(9), "bright/notes.txt": b"not listed"}
    for name, content in contents.items():
        file = tmp_path / "my test set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "my test set"


@pytest.fixture
def landing(tmp_path: Path) -> ImageFolder:
    """The landing folder, which has nothing to do with the test set."""
    return ImageFolder(root=str(tmp_path / "landing"))


def run(tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, **config: Any) -> dg.ExecuteInProcessResult:
    return evaluate_version.execute_in_process(
        run_config={"ops": {"evaluate_on_images": {"config": config}}},
        resources={
            "delta_tables": tables_at(tmp_path / "tables"),
            "image_folder": landing,
            "model_registry": registry,
            "mlflow_tracking": MlflowTracking(tracking_uri=registry.tracking_uri, artifact_url=tmp_path.as_uri()),
            "inference_device": InferenceDevice(choice="cpu"),
        },
        raise_on_error=False,
    )


def register(registry: ModelRegistry, tmp_path: Path, **classifier: Any) -> None:
    folder = tmp_path / f"version {len(registry.versions())}"
    folder.mkdir()
    tags = {"framework": "torch", "labels": json.dumps(LABELS)}
    registered(saved_brightness(folder, **classifier), registry, tags, (tmp_path / "artifacts").as_uri())


def evaluations(tmp_path: Path) -> dict[str, dict]:
    tables: DeltaTables = tables_at(tmp_path / "tables")
    rows = tables.read(MODEL_EVALUATIONS, MODEL_EVALUATIONS.columns.fieldNames()).to_pylist()
    return {row["corruption"]: row for row in rows}


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def test_a_folder_is_evaluated_as_it_is_and_corrupted(
    tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, test_set: Path
) -> None:
    register(registry, tmp_path)
    splits = [
        ("bright/1.png", "training"),
        ("bright/2.png", "validation"),
        ("dark/1.png", "test"),
        ("gone", "training"),
    ]
    rows = [
        {"path": f"file:/landing/{name}", "image_id": sha256(gray(LEVELS.get(name, 5))).hexdigest(), "split": split}
        for name, split in splits
    ]
    tables = tables_at(tmp_path / "tables")
    tables.merge(pa.Table.from_pylist(rows, to_arrow_schema(IMAGE_SPLITS.columns)), IMAGE_SPLITS, updates={})
    config = {"version": 1, "folder": str(test_set), "darkness": [0.4, 1.0], "rotation": [20.0]}
    for _ in range(2):  # the second time replaces the rows
        result = run(tmp_path, registry, landing, **config)
        assert result.success
    rows = evaluations(tmp_path)
    assert list(rows) == ["", "darkness 0.4", "darkness 1", "rotation 20"]
    keys = {(row["split"], row["dataset"], row["model_version"], row["framework"]) for row in rows.values()}
    assert keys == {("", "my test set", 1, "torch")}
    # Dark 2 is wrong; with 0.6 of their light, bright 2 and 3 are dark, and dark 2 is.
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "": 4 / 5,
        "darkness 0.4": 3 / 5,
        "darkness 1": 2 / 5,
        "rotation 20": 4 / 5,
    }
    assert (rows[""]["images"], rows[""]["unreadable"], rows[""]["with_unknown_label"]) == (5, 1, 2)
    assert rows[""]["confusion_matrix"] == [[3, 0], [1, 1]]
    assert rows[""]["log_loss"] > 0
    (observed,) = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    shown = observed.asset_observation_data.asset_observation.metadata
    assert {"results", "accuracy_by_corruption", "reliability_diagram", "confusion_matrix"} <= set(shown)
    assert shown["in_training_or_validation"].value == 2
    (unknown,) = shown["unknown_labels"].records
    assert unknown.data == {"label": "dusk", "images": 2}
    assert {Path(row.data["path"]).name for row in shown["unreadable_files"].records} == {"broken.png"}
    assert {Path(row.data["path"]).name for row in shown["left_out_files"].records} == {"without label.png"}
    logged = MlflowClient(registry.tracking_uri).list_artifacts(
        registry.version(1).mlflow_run_id, "evaluation/my test set"
    )
    assert "accuracy_by_corruption.png" in {Path(file.path).name for file in logged}


def test_results_on_other_images_of_the_same_name_are_not_replaced_in_silence(
    tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, test_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(registry, tmp_path)
    others = put(tmp_path / "others" / test_set.name, "bright/5.png", gray(250)).parents[1]
    for folder, warnings in ((test_set, 0), (test_set, 0), (others, 1)):
        assert run(tmp_path, registry, landing, version=1, folder=str(folder)).success
        assert capfd.readouterr().err.count("images that were also called 'my test set'") == warnings


def test_a_version_that_abstains_has_coverage(
    tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, test_set: Path
) -> None:
    register(registry, tmp_path, thresholds=[0.75, 0.5])  # bright 3 and dark 2 are bright with less
    assert run(tmp_path, registry, landing, version=1, folder=str(test_set), dataset="mine").success
    (row,) = evaluations(tmp_path).values()
    assert (row["dataset"], row["accuracy"], row["coverage"], row["answered_accuracy"]) == ("mine", 4 / 5, 3 / 5, 1)


def test_a_table_gives_the_labels(
    tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, test_set: Path
) -> None:
    register(registry, tmp_path)
    registry.promote(1, "Production")
    lines = [
        "image,class",
        "bright/1.png,bright",
        "dark/2.png,bright",
        "dark/1.png,",
        "gone.png,dark",
        "dusk/1.png,dark",
    ]
    (test_set / "labels.csv").write_text("\n".join(lines))
    assert run(tmp_path, registry, landing, table=str(test_set / "labels.csv")).success
    (row,) = evaluations(tmp_path).values()
    assert (row["dataset"], row["images"], row["accuracy"], row["unreadable"]) == ("labels.csv", 3, 1, 1)


def test_a_path_that_no_file_system_can_open_costs_that_image_only(landing: ImageFolder, test_set: Path) -> None:
    paths = {"foo://bucket/a.png": "dark", "file:/a\0.png": "dark", f"file:{test_set}/dark/1.png": "dark"}
    unreadable: dict[str, str] = {}
    assert [row["path"] for row in read_images(paths, landing, unreadable)] == [[*paths][2]]
    assert [*unreadable] == [*paths][:2]
    assert unreadable["foo://bucket/a.png"].startswith("ValueError: Protocol not known")


@pytest.mark.parametrize("table", ["{}/labels/", "{}/labels", "file://{}/labels.csv"])
def test_the_images_of_a_table_are_beside_it(tmp_path: Path, table: str) -> None:
    assert EvaluateConfig(table=table.format(tmp_path)).root == str(tmp_path)


def test_a_folder_of_splits_has_the_labels_below_them(tmp_path: Path, landing: ImageFolder) -> None:
    for name in ("train/bright/1.png", "test/dark/1.png"):
        file = tmp_path / "photographs" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(gray(1))
    (tmp_path / "link").symlink_to(tmp_path / "photographs")
    found = labeled_images(EvaluateConfig(folder=str(tmp_path / "link")), landing)
    assert sorted(found.labels.values()) == ["bright", "dark"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"version": 7}, "no version 7"),
        ({}, "no version is in production"),
        ({"version": 1, "folder": "nowhere"}, "nowhere cannot be listed"),
        ({"version": 1, "folder": "dusk"}, "has no labeled images: no file has a label"),
        (
            {"version": 1, "folder": "other labels"},
            "has none of the labels dusk: its labels are bright, dark",
        ),
        ({"version": 1, "folder": "broken"}, "none of the 1 images can be read"),
    ],
)
def test_what_cannot_be_evaluated_says_why(
    tmp_path: Path, registry: ModelRegistry, landing: ImageFolder, test_set: Path, config: dict, expected: str
) -> None:
    register(registry, tmp_path)
    (test_set / "other labels").mkdir()
    (test_set / "dusk").rename(test_set / "other labels" / "dusk")
    (test_set / "dusk").mkdir()
    (test_set / "dusk" / "1.png").write_bytes(gray(1))
    (test_set / "broken" / "dark").mkdir(parents=True)
    (test_set / "broken" / "dark" / "1.png").write_bytes(b"no image")
    folder = test_set / config.get("folder", ".")
    assert expected in failure(run(tmp_path, registry, landing, **{**config, "folder": str(folder)}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "neither folder nor table is set"),
        ({"folder": "f", "blur": [0]}, "blur is 0: expected more than 0"),
        ({"folder": "f", "darkness": [1.5]}, "darkness is 1.5: expected more than 0, up to 1"),
        ({"folder": "f", "blur": [1e300]}, r"blur is 1e\+300: expected more than 0, up to 1000"),
    ],
)
def test_settings_that_make_no_sense_are_errors(config: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        EvaluateConfig(**config)
