"""The whole path on real photographs: from a folder of files to predictions, and what happens to it afterwards."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import dagster as dg
import mlflow
import pandas as pd
import pytest
from deltalake import DeltaTable

from definitions import defs
from image_assets.data.training_cache import training_cache
from image_assets.data.validation_cache import validation_cache
from image_assets.models.image_classifier import ANSWER_COLUMNS
from image_assets.models.trained_models import MODEL_ASSETS
from image_assets.schemas import BACKBONE_COMPARISONS, FETCHED_IMAGES, TABLES
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from resources.settings import Settings, create_resources, read_settings
from tests.support.packages import asked, built, edge_answers, request_for, started
from tests.support.photographs import PHOTOGRAPHS, WEIGHTS, photographs
from tests.support.served import free_port, mlflow_server, requested_runs, served, wait_for

ROOT = Path(__file__).parents[2]
PER_LABEL = 24
MADE = [table for table in TABLES if table not in (FETCHED_IMAGES, BACKBONE_COMPARISONS)]  # by jobs of their own

pytestmark = [
    pytest.mark.path,
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"no photographs in {PHOTOGRAPHS}"),
]


def run_demo(home: Path, landing: Path) -> subprocess.CompletedProcess[str]:
    """What `make demo LANDING=...` runs, once everything is installed."""
    environment = {
        **os.environ,
        "IMAGE_ASSETS_HOME": str(home),
        "IMAGE_ASSETS_LANDING": str(landing),
        "IMAGE_ASSETS_BACKBONE": str(WEIGHTS) if WEIGHTS.is_dir() else "none",
        "IMAGE_ASSETS_SPARK_MASTER": "local[2]",
    }
    command = [sys.executable, "-m", "scripts", "demo"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def landing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs in a sub-folder for each label, two without a label, one that is cut in half, one text."""
    folder = tmp_path_factory.mktemp("landing")
    for label in ("daisy", "roses", "tulips"):
        (folder / label).mkdir()
        for photograph in photographs(label)[:PER_LABEL]:
            shutil.copy(photograph, folder / label)
    for label in ("daisy", "roses"):
        shutil.copy(photographs(label)[-1], folder)
    (folder / "daisy" / "cut in half.jpg").write_bytes(photographs("daisy")[-2].read_bytes()[:3000])
    (folder / "roses" / "text.jpg").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, landing: Path) -> Settings:
    """The home after one run of the demo's command on the landing folder."""
    home = tmp_path_factory.mktemp("home") / "home"
    answer = run_demo(home, landing)
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
    (home.parent / "output.txt").write_text(answer.stdout)
    variables = {
        "IMAGE_ASSETS_HOME": str(home),
        "IMAGE_ASSETS_LANDING": str(landing),
        "IMAGE_ASSETS_SPARK_MASTER": "local[2]",
        "IMAGE_ASSETS_BACKBONE": str(WEIGHTS) if WEIGHTS.is_dir() else "none",
    }
    return read_settings(variables)


@pytest.fixture
def registry(settings: Settings) -> ModelRegistry:
    """The registry of the home."""
    return ModelRegistry(tracking_uri=settings.tracking_uri)


@pytest.fixture(scope="module")
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of the home."""
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        yield instance


def rows(settings: Settings, table: str, columns: list[str] | None = None) -> pd.DataFrame:
    """A table's rows, read by delta-rs."""
    return DeltaTable(str(settings.home / "tables" / table)).to_pandas(columns=columns)


def versions(settings: Settings) -> dict[str, int]:
    """The Delta version of each table."""
    return {table.name: DeltaTable(str(settings.home / "tables" / table.name)).version() for table in MADE}


def run(job: str, settings: Settings, instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    """Run a job of the graph on the home."""
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, resources=create_resources(settings), run_config=config or None
    )


def test_every_file_is_a_row_with_its_bytes_or_is_quarantined(settings: Settings, landing: Path) -> None:
    raw = rows(settings, "raw_images")
    files = {f"file:{file}": sha256(file.read_bytes()).hexdigest() for file in landing.rglob("*.jpg")}
    text = f"file:{landing}/roses/text.jpg"
    assert dict(zip(raw["path"], raw["image_id"], strict=True)) == {
        path: digest for path, digest in files.items() if path != text
    }
    assert all(
        sha256(content).hexdigest() == image_id
        for content, image_id in zip(raw["content"], raw["image_id"], strict=True)
    )
    ledger = rows(settings, "image_files").set_index("path")
    assert set(ledger.index) == set(files)
    quarantined = ledger[ledger["state"] == "quarantined"]["reason"].to_dict()
    assert quarantined == {text: "not_an_image", f"file:{landing}/daisy/cut in half.jpg": "undecodable"}


def test_pictures_are_files_that_the_web_server_shows(instance: dg.DagsterInstance) -> None:
    texts: dict[str, str] = {}
    for key in instance.get_asset_keys():
        event = instance.get_latest_materialization_event(key)
        metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
        shown = [value.md_str or "" for value in metadata.values() if isinstance(value, dg.MarkdownMetadataValue)]
        texts[key.to_user_string()] = "\n".join(shown)
    assert "](/pictures/" in texts["torch_model"]
    assert [asset for asset, text in texts.items() if ";base64," in text] == []


def test_every_table_opens_with_delta_rs_with_the_promised_columns(settings: Settings) -> None:
    for table in MADE:
        found = json.loads(DeltaTable(str(settings.home / "tables" / table.name)).schema().to_json())
        assert found == json.loads(table.columns.json()), table.name


def test_the_summary_says_what_came_out(settings: Settings) -> None:
    output = (settings.home.parent / "output.txt").read_text()
    for expected in ("not_an_image", "undecodable", "tensorflow", "torch", "production", "make dev", "raw_images"):
        assert expected in output
    assert output.index("Browse your images while the demo runs: http://127.0.0.1:") < output.index("Test accuracy")
    examples = re.search(r"Some predictions\n  photo .*\n((?:  \S.*\n){5})", output)
    assert examples
    assert all(re.search(r"  (daisy|roses|tulips) +[01]\.\d{3}$", line) for line in examples[1].splitlines())
    assert re.search(r"serves\. .+ runs beside it as a shadow; they agree on \d+% of the images\.", output)


def test_both_versions_predict_from_the_first_run_on(settings: Settings, registry: ModelRegistry) -> None:
    files = len(rows(settings, "current_predictions", ["path"]))
    assert predicted(settings) == {version.version: files for version in registry.versions()}
    stages = {version.stage: version.aliases for version in registry.versions()}
    assert stages == {"Production": ("production",), "Staging": ("staging",)}
    (agreement,) = rows(settings, "version_agreements").to_dict("records")
    assert agreement["images"] == files


def test_both_versions_answer_bytes_and_paths_and_null_for_a_broken_image(
    settings: Settings, registry: ModelRegistry, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(settings.tracking_uri)
    images = [file.read_bytes() for file in photographs("tulips")[:10]]
    images[3] = b"broken"
    found = {version.tags["framework"]: version for version in registry.versions()}
    assert set(found) == {"tensorflow", "torch"}
    for version in found.values():
        model = mlflow.pyfunc.load_model(version.uri)
        answers = model.predict(pd.DataFrame({"content": images}))
        assert list(answers.columns) == [*ANSWER_COLUMNS]
        assert not answers["abstained"].fillna(False).any()
        assert answers["label"].isna().tolist() == [place == 3 for place in range(10)]
        good = answers.drop(index=3)
        labels = json.loads(version.tags["labels"])
        for answer in good.itertuples():
            assert sum(answer.probabilities) == pytest.approx(1, abs=1e-3)
            assert labels[max(range(3), key=lambda place: answer.probabilities[place])] == answer.label
        assert model.predict(model.input_example)["label"].isin(labels).all()
        by_path = model.predict(pd.DataFrame({"path": [str(file) for file in photographs("tulips")[:3]]}))
        assert by_path["label"].tolist() == answers["label"].tolist()[:3]


def test_versions_carry_their_lineage(settings: Settings, registry: ModelRegistry) -> None:
    for version in registry.versions():
        expected = {"framework", "table_versions", "code_version", "dagster_run_id", "mlflow_run_id", "labels"}
        assert expected <= set(version.tags)
        assert json.loads(version.tags["table_versions"])["featured_images"] == versions(settings)["featured_images"]
    mlflow.set_tracking_uri(settings.tracking_uri)
    runs = mlflow.search_runs(search_all_experiments=True)
    assert set(runs["status"]) == {"FINISHED"}


def test_predictions_cover_every_current_file_also_those_without_a_label(settings: Settings, landing: Path) -> None:
    predictions = rows(settings, "current_predictions").set_index("path")
    current = rows(settings, "image_files").query("state == 'current'")
    assert set(predictions.index) == set(current["path"])
    unlabeled = {f"file:{file}" for file in landing.glob("*.jpg")}
    assert len(unlabeled) == 2
    assert unlabeled <= set(predictions.index)
    assert not unlabeled & set(rows(settings, "image_splits", ["path"])["path"])


def test_the_python_of_the_documentation_runs(settings: Settings, landing: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my photographs, ½ of them"
    (folder / ".image_assets").mkdir(parents=True)
    for entry in settings.home.iterdir():
        (folder / ".image_assets" / entry.name).symlink_to(entry)
    (folder / ".image_assets" / "landing").symlink_to(landing)
    pages = [page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]
    found = [program for page in pages for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    programs = [program for program in found if ".image_assets" in program]  # others are of a server
    assert len(programs) >= 6
    for program in programs:
        command = [sys.executable, "-c", program]
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr[-2000:]
        assert re.search("path|label|accuracy", answer.stdout)


def test_the_same_command_again_adds_nothing_and_trains_nothing(settings: Settings, landing: Path) -> None:
    before = versions(settings)
    answer = run_demo(settings.home, landing)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert versions(settings) == before
    assert answer.stdout.count("nothing changed") == 4  # two caches, two models


def test_every_asset_check_passed(settings: Settings, instance: dg.DagsterInstance) -> None:
    evaluated = {dg.DagsterEventType.ASSET_CHECK_EVALUATION}
    of_nothing = dg.AssetCheckKey(dg.AssetKey("replayed_files"), "layout")  # no file was judged again
    for demo in instance.get_runs(dg.RunsFilter(job_name="whole_path")):
        events = [entry.get_dagster_event() for entry in instance.all_logs(demo.run_id, evaluated)]
        checks = [event.asset_check_evaluation_data for event in events]
        expected = defs.resolve_asset_graph().asset_check_keys - {of_nothing}
        assert {check.asset_check_key for check in checks} == expected
        assert [check.asset_check_key for check in checks if not check.passed] == []


def predicted(settings: Settings) -> Counter[int]:
    """How many images each version has predicted; none of them twice."""
    predictions = rows(settings, "image_predictions", ["path", "image_id", "model_version"])
    assert not predictions.duplicated().any()
    return Counter(predictions["model_version"].tolist())


def promote(version: ModelVersion, settings: Settings, instance: dg.DagsterInstance) -> None:
    """Promote a version as a person does who looks at what the checks find."""
    asked = {"version": version.version, "person": "Ada", "tolerance": 0.5, "force": not WEIGHTS.is_dir()}
    assert run("promote_model", settings, instance, **{"ops": {"promote": {"config": asked}}}).success


def test_files_and_promotions_and_a_rollback_lead_to_predictions_by_themselves(
    settings: Settings,
    registry: ModelRegistry,
    landing: Path,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorFlow serves, then PyTorch, then TensorFlow again; no code and no setting changes in between."""
    found = {version.tags["framework"]: version for version in registry.versions()}
    tensorflow, torch = found["tensorflow"], found["torch"]
    files = len(rows(settings, "current_predictions", ["path"]))
    log = tmp_path / "dev.log"

    def has_run(sensor: str, times: int) -> bool:
        states = [run.status for run in requested_runs(instance, sensor)]
        assert len(states) <= times
        return states == [dg.DagsterRunStatus.SUCCESS] * times

    def shown() -> Counter[int]:
        return Counter(rows(settings, "current_predictions")["model_version"].tolist())

    registry.promote(tensorflow.version, "Production")
    with served(settings, log):
        wait_for(lambda: has_run("stage_changes", 1), "the predictions of TensorFlow", log)
        assert shown() == {tensorflow.version: files}
        promote(torch, settings, instance)
        wait_for(lambda: has_run("stage_changes", 2), "the predictions of PyTorch", log)
        assert shown() == {torch.version: files}
        assert predicted(settings) == {tensorflow.version: files, torch.version: files}

        before = {table.name: len(rows(settings, table.name, [table.keys[0]])) for table in MADE}
        for photograph in photographs("tulips")[PER_LABEL : PER_LABEL + 2]:
            shutil.copy(photograph, landing / "tulips")
        wait_for(lambda: has_run("new_images", 1), "the predictions for new files", log)
        after = {table.name: len(rows(settings, table.name, [table.keys[0]])) for table in MADE}
        added = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        followers = ("raw_images", "featured_images", "grayscale_images", "image_splits", "image_embeddings")
        assert added == dict.fromkeys(("image_files", *followers, "image_predictions", "current_predictions"), 2)
        assert predicted(settings) == {tensorflow.version: files, torch.version: files + 2}

    for version in (tensorflow, torch):  # there and back while nobody looks
        registry.promote(version.version, "Production")
    promote(tensorflow, settings, instance)
    port = free_port()
    with served(settings, log, {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}):
        wait_for(lambda: "does not answer" in log.read_text(), "a registry that is down", log)
        with mlflow_server(settings, port, monkeypatch):
            wait_for(lambda: has_run("stage_changes", 3), "the predictions of TensorFlow again", log)
    assert shown() == {tensorflow.version: files + 2}
    assert predicted(settings) == {tensorflow.version: files + 2, torch.version: files + 2}
    assert has_run("new_images", 1)
    for request, version in zip(
        requested_runs(instance, "stage_changes"), (tensorflow, torch, tensorflow), strict=True
    ):
        assert request.tags["image_assets/model_version"] == str(version.version)
        assert request.tags["image_assets/framework"] == version.tags["framework"]
        assert (request.tags["image_assets/stage"], request.tags["image_assets/pool"]) == ("Production", "gpu")


def test_promotions_are_written_down(settings: Settings, registry: ModelRegistry) -> None:
    serving = registry.serving()
    assert serving is not None
    assert "production" in serving.aliases
    history = rows(settings, "stage_history").query("person == 'Ada'").sort_values("changed_at")
    # A sensor that looks between two calls of a promotion records the stage and the alias one after the other.
    to_production = history.query("to_stage == 'Production' and from_stage != 'Production'")
    frameworks = {version.version: version.tags["framework"] for version in registry.versions()}
    assert to_production["model_version"].map(frameworks).tolist() == ["torch", "tensorflow"]
    assert {len(findings) for findings in to_production["findings"]} == {8}


def test_a_packaged_version_answers_as_the_table_says_without_the_project(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    version = registry.versions()[0]
    package = tmp_path / "package"
    config = {"ops": {"package": {"config": {"version": version.version, "folder": str(package)}}}}
    assert run("package_model", settings, instance, **config).success
    predictions = rows(settings, "image_predictions").query(f"model_version == {version.version}")[::10]
    files = [Path(path.removeprefix("file:")) for path in predictions["path"]]
    assert len(files) >= 7

    image = built(package, tmp_path / "image")
    assert image.user not in ("root", "0")
    with started(image, free_port()) as address:
        by_http = asked(address, request_for([file.read_bytes() for file in files]))
        assert len(asked(address, (package / "request.json").read_bytes())) == 1
    by_edge = edge_answers(package, files, tmp_path / "edge")

    for found in (by_http, by_edge):
        assert found["label"].tolist() == predictions["label"].tolist()
        assert found["probability"].tolist() == pytest.approx(predictions["probability"].tolist(), abs=1e-3)


def reproduced(version: int, settings: Settings, instance: dg.DagsterInstance) -> dict[str, dg.MetadataValue]:
    """What `reproduce_model` says of a version."""
    config = {"ops": {"reproduce": {"config": {"version": version}}}}
    result = run("reproduce_model", settings, instance, **config)
    (output,) = [event.step_output_data for event in result.all_events if event.is_successful_output]
    return dict(output.metadata)


def test_a_version_of_two_processes_is_trained_again_from_the_tables_as_they_were(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance
) -> None:
    """Files have come since, and the caches of that time may be gone."""
    before = registry.versions()
    shutil.rmtree(settings.home / "caches")
    (version,) = [version for version in before if version.tags["framework"] == "torch"]
    report = reproduced(version.version, settings, instance)
    assert float(str(report["agreeing_predictions"].value)) >= 0.99, report["differences"].value
    assert registry.versions() == before


def test_a_version_of_one_process_is_trained_again_bit_by_bit(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance
) -> None:
    alone = replace(settings, processes=1)
    before = registry.versions()
    (model,) = [asset for asset in MODEL_ASSETS if asset.key == dg.AssetKey("tensorflow_model")]
    assets = [training_cache, validation_cache, model]
    assert dg.materialize(assets, resources=create_resources(alone), instance=instance).success
    (version,) = [version for version in registry.versions() if version not in before]
    report = reproduced(version.version, settings, instance)
    assert report["same"].value is True, report["differences"].value
    assert version.tags["weights_digest"] in str(report["differences"].value)
