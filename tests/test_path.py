"""The whole path on real photographs: from a folder of files to predictions, and what happens to it afterwards."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import dagster as dg
import mlflow
import pandas as pd
import pytest
from deltalake import DeltaTable

from definitions import defs
from image_assets.schemas import TABLES
from resources.environments import Settings, local, read_settings
from resources.model_registry import ModelRegistry
from tests.packages import asked, built, edge_answers, request_for, started
from tests.photographs import PHOTOGRAPHS, WEIGHTS, photographs

ROOT = Path(__file__).parent.parent
PER_LABEL = 24
PATIENCE_SECONDS = 300

pytestmark = [
    pytest.mark.path,
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
    command = [sys.executable, "-m", "scripts.demo"]
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
    home = tmp_path_factory.mktemp("home") / "kept"
    answer = run_demo(home, landing)
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
    (home.parent / "said.txt").write_text(answer.stdout)
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
    return {table.name: DeltaTable(str(settings.home / "tables" / table.name)).version() for table in TABLES}


def run(job: str, settings: Settings, instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    """Run a job of the graph on the home."""
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, resources=local(settings), run_config=config or None
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


def test_every_table_opens_with_delta_rs_with_the_promised_columns(settings: Settings) -> None:
    for table in TABLES:
        found = json.loads(DeltaTable(str(settings.home / "tables" / table.name)).schema().to_json())
        assert found == json.loads(table.columns.json()), table.name


def test_the_summary_says_what_came_out(settings: Settings) -> None:
    said = (settings.home.parent / "said.txt").read_text()
    for expected in ("not_an_image", "undecodable", "tensorflow", "torch", "serving", "make dev", "grayscale_images"):
        assert expected in said


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
        assert list(answers.columns) == ["label", "probability", "probabilities"]
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
    unlabelled = {f"file:{file}" for file in landing.glob("*.jpg")}
    assert len(unlabelled) == 2
    assert unlabelled <= set(predictions.index)
    assert not unlabelled & set(rows(settings, "image_splits", ["path"])["path"])


def test_the_python_of_the_documentation_runs(settings: Settings, landing: Path, tmp_path: Path) -> None:
    (tmp_path / ".image_assets").mkdir()
    for kept in settings.home.iterdir():
        (tmp_path / ".image_assets" / kept.name).symlink_to(kept)
    (tmp_path / ".image_assets" / "landing").symlink_to(landing)
    pages = [page.read_text() for page in sorted((ROOT / "docs").rglob("*.md"))]
    programs = [program for page in pages for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert len(programs) >= 5
    for program in programs:
        command = [sys.executable, "-c", program]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr[-2000:]
        assert re.search("path|label|accuracy", answer.stdout)


def test_the_same_command_again_adds_nothing_and_trains_nothing(settings: Settings, landing: Path) -> None:
    before = versions(settings)
    answer = run_demo(settings.home, landing)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert versions(settings) == before
    assert answer.stdout.count("nothing changed") == 4  # two caches, two models


def test_asset_checks_pass(settings: Settings, instance: dg.DagsterInstance) -> None:
    result = run("check_assets", settings, instance)
    checks = result.get_asset_check_evaluations()
    assert len(checks) >= 17
    assert [f"{check.asset_key.to_user_string()}.{check.check_name}" for check in checks if not check.passed] == []


def test_more_files_travel_alone(settings: Settings, landing: Path, instance: dg.DagsterInstance) -> None:
    before = {table.name: len(rows(settings, table.name, [table.keys[0]])) for table in TABLES}
    for photograph in photographs("tulips")[PER_LABEL : PER_LABEL + 2]:
        shutil.copy(photograph, landing / "tulips")
    assert run("ingest_images", settings, instance).success
    after = {table.name: len(rows(settings, table.name, [table.keys[0]])) for table in TABLES}
    added = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    followers = ("image_files", "raw_images", "featured_images", "grayscale_images", "image_splits")
    assert added == dict.fromkeys((*followers, "image_predictions", "current_predictions"), 2)


def test_promotion_and_rollback_move_the_predictions(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance
) -> None:
    first = registry.serving()
    assert first is not None
    other = next(version for version in registry.versions() if version.version != first.version)
    files = len(rows(settings, "current_predictions", ["path"]))
    for serving, scored in ((other, files), (first, 0)):
        before = len(rows(settings, "image_predictions", ["path"]))
        asked = {"version": serving.version, "person": "Ada", "tolerance": 0.5, "force": not WEIGHTS.is_dir()}
        config = {"ops": {"promote": {"config": asked}}}
        assert run("promote_model", settings, instance, **config).success
        assert run("predict_images", settings, instance).success
        shown = rows(settings, "current_predictions")
        assert set(shown["model_version"]) == {serving.version}
        assert len(shown) == files
        assert len(rows(settings, "image_predictions", ["path"])) - before == scored
    client = mlflow.MlflowClient(settings.tracking_uri)
    assert int(client.get_model_version_by_alias(registry.name, "production").version) == first.version
    history = rows(settings, "stage_history").query("person == 'Ada'").sort_values("changed_at")
    to_production = history[history["to_stage"] == "Production"]
    assert to_production["model_version"].tolist() == [other.version, first.version]
    assert {len(found) for found in to_production["findings"]} == {7}


def free_port() -> str:
    """A port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Look again until it is so; the end of the log, when it takes too long."""
    for _ in range(PATIENCE_SECONDS):
        if condition():
            return
        time.sleep(1)
    pytest.fail(f"{what}: not within {PATIENCE_SECONDS} s\n{log.read_text()[-3000:]}")


def test_a_packaged_version_answers_as_the_table_says_without_the_project(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """In TensorFlow, whose environment is smaller than that of torch."""
    (version,) = [version for version in registry.versions() if version.tags["framework"] == "tensorflow"]
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


@pytest.fixture
def served(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """What `make dev` runs, on the home; the file that it writes to."""
    log = tmp_path / "dev.log"
    environment = {
        **os.environ,
        "IMAGE_ASSETS_HOME": str(settings.home),
        "IMAGE_ASSETS_SPARK_MASTER": "local[2]",
        "DAGSTER_PORT": free_port(),
        "MLFLOW_PORT": free_port(),
    }
    with log.open("w") as output:
        command = [sys.executable, "-m", "scripts.dev"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield log
        finally:
            process.terminate()
            process.wait(60)


def test_new_files_and_promotions_lead_to_predictions_by_themselves(
    settings: Settings, registry: ModelRegistry, landing: Path, served: Path
) -> None:
    new = landing / "a new one.jpg"
    shutil.copy(photographs("tulips")[-1], new)
    wait_for(
        lambda: f"file:{new}" in set(rows(settings, "current_predictions")["path"]),
        "a prediction for the new file",
        served,
    )
    serving = registry.serving()
    assert serving is not None
    other = next(version.version for version in registry.versions() if version.version != serving.version)
    registry.promote(other, "Production")
    wait_for(
        lambda: set(rows(settings, "current_predictions")["model_version"]) == {other},
        f"the predictions of version {other}",
        served,
    )


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
    told = reproduced(version.version, settings, instance)
    assert float(str(told["agreeing_predictions"].value)) >= 0.99, told["differences"].value
    assert registry.versions() == before


def test_versions_of_one_process_are_trained_again_bit_by_bit(
    settings: Settings, registry: ModelRegistry, instance: dg.DagsterInstance
) -> None:
    alone = replace(settings, processes=1)
    known = {version.version for version in registry.versions()}
    assert run("train_models", alone, instance).success
    new = [version for version in registry.versions() if version.version not in known]
    assert [version.tags["framework"] for version in new] == ["tensorflow", "torch"]
    for version in new:
        told = reproduced(version.version, settings, instance)
        assert told["same"].value is True, told["differences"].value
        assert version.tags["weights_digest"] in str(told["differences"].value)
