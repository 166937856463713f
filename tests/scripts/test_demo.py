"""The tables that a demo prints."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from definitions import defs
from image_assets.data.raw_images import skipped_metadata
from resources.files.listing import Skipped
from resources.mlflow.model_registry import ModelVersion
from resources.settings import read_settings
from scripts.demo import (
    GalleryServer,
    accuracy_rows,
    available_port,
    chosen,
    comparison,
    locations,
    skipped_rows,
    two_parts,
)
from scripts.dev import is_up
from scripts.home import prepare
from scripts.terminal import ROOT


def test_what_the_listing_skipped_is_printed_most_frequent_first() -> None:
    skipped = Skipped(Counter({".mov": 3, ".txt": 1}), Counter({"._*": 20}), Counter({"@eaDir": 7}))
    assert skipped_rows({"image_files": skipped_metadata(skipped)}) == [
        ("._*", "excluded files", "20"),
        ("@eaDir", "excluded folders", "7"),
        (".mov", "other files", "3"),
        (".txt", "other files", "1"),
    ]
    assert skipped_rows({"image_files": skipped_metadata(Skipped())}) == skipped_rows({}) == [("none",)]


def test_the_examples_take_turns_among_the_predicted_labels() -> None:
    labels = {"d.png": "cat", "a.png": "cat", "b.png": "cat", "c.png": "dog", "e.png": "cat", "f.png": "cat"}
    rows = [{"path": path, "image_id": path, "label": label, "probability": 0.5} for path, label in labels.items()]
    assert [row["path"] for row in chosen(rows)] == ["a.png", "c.png", "b.png", "d.png", "e.png"]
    assert chosen([]) == []


def version(number: int, framework: str, stage: str) -> ModelVersion:
    return ModelVersion(number, stage, (), "", f"models:/image_classifier/{number}", {"framework": framework})


def test_the_last_lines_compare_the_shadow_with_the_serving_version() -> None:
    versions = [version(1, "tensorflow", "Staging"), version(2, "torch", "Production"), version(3, "torch", "None")]
    metadata = {
        "model_evaluations": {"test_accuracy_v1": 0.875, "test_accuracy_v2": 0.9, "test_accuracy_v3": 0.5},
        "version_agreements": {"agreement_v1": 0.934},
    }
    assert comparison(metadata, versions) == (
        "PyTorch (version 2, test accuracy 0.90) serves. TensorFlow (version 1, test accuracy 0.88) runs beside it as "
        "a shadow; they agree on 93% of the images."
    )
    assert comparison({}, versions[1:]) == "PyTorch (version 2) serves."
    assert comparison(metadata, versions[:1]) == ""


def test_each_version_is_shown_with_its_framework_and_the_one_in_production() -> None:
    metadata = {
        "tensorflow_model": {"model_version": "2"},
        "torch_model": {"model_version": "1"},
        "model_evaluations": {"test_accuracy_v1": 0.9, "test_accuracy_v2": 0.875, "serving_version": "1"},
    }
    assert accuracy_rows(metadata) == [
        ("version 2", "TensorFlow", "0.875"),
        ("version 1", "PyTorch", "0.900"),
        ("production", "version 1", ""),
    ]
    without = {**metadata, "model_evaluations": {"serving_version": "none"}}
    assert accuracy_rows(without)[-1] == ("production", "none yet: promote one with promote_model", "")
    assert accuracy_rows({})[-1] == accuracy_rows(without)[-1]


def test_the_summary_names_the_configured_servers_and_ports(tmp_path: Path) -> None:
    home = {"IMAGE_ASSETS_HOME": str(tmp_path)}
    ports = {"DAGSTER_PORT": "3001", "GALLERY_PORT": "4001", "MLFLOW_PORT": "5001"}
    rows = dict(locations(read_settings({**home, **ports})))
    assert rows["models"] == f"sqlite:///{tmp_path}/mlflow.db, {tmp_path}/mlartifacts"
    for url in ("http://127.0.0.1:3001", "http://127.0.0.1:4001", "http://127.0.0.1:5001"):
        assert url in rows["UI"]
    rows = dict(locations(read_settings({**home, "MLFLOW_TRACKING_URI": "https://mlflow.example"})))
    assert rows["models"] == "https://mlflow.example"
    assert "https://mlflow.example (MLflow)" in rows["UI"]


def test_the_two_parts_of_a_first_demo_are_the_whole_path_and_only_the_second_needs_frameworks() -> None:
    before, after = two_parts()
    of_other_jobs = {dg.AssetKey("fetched_images"), dg.AssetKey("backbone_comparisons")}
    assert before | after == defs.resolve_asset_graph().get_all_asset_keys() - of_other_jobs
    assert not before & after
    assert {dg.AssetKey(name) for name in ("image_embeddings", "tensorflow_model", "torch_model")} <= after


def test_the_gallery_takes_another_port_if_its_own_is_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        used = other.getsockname()[1]
        assert available_port(used) != used
    assert available_port(used) == used


def materialization(asset: str, rows_added: int) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(asset, metadata={"rows_added": rows_added})


def test_the_gallery_runs_from_the_first_new_images_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings({"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "GALLERY_PORT": str(available_port(0))})
    prepare(settings)
    with GalleryServer(settings) as gallery:
        gallery.start_with_images(materialization("raw_images", 3))
        gallery.start_with_images(materialization("featured_images", 0))
        assert not gallery.is_running
        gallery.start_with_images(materialization("featured_images", 3))
        assert gallery.is_running
        output, deadline = "", time.monotonic() + 120
        while not (found := re.search(r"while the demo runs: (http://127\.0\.0\.1:\d+) ", output)):
            assert time.monotonic() < deadline, output
            time.sleep(0.2)
            output += capsys.readouterr().out
        assert found[1] == settings.gallery_url
        assert is_up(found[1])
    assert not is_up(found[1])


KILLED = """
import os, signal, sys, time
import dagster as dg
from resources.settings import read_settings
from scripts.demo import GalleryServer
from scripts.dev import is_up
settings = read_settings()
with GalleryServer(settings) as gallery:
    gallery.start_with_images(dg.AssetMaterialization("featured_images", metadata={"rows_added": 1}))
    while not is_up(settings.gallery_url):
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_gallery_ends_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    variables = {"IMAGE_ASSETS_HOME": str(tmp_path / "home"), "GALLERY_PORT": str(available_port(0))}
    settings = read_settings(variables)
    prepare(settings)
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env={**os.environ, **variables}, check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while is_up(settings.gallery_url):
        assert time.monotonic() < deadline
        time.sleep(0.1)
