"""Tests of the common recipe's training: its rows, and how it finds a cache."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.recipe_training import EpochClock, cache_in, labels_in, transform, weights_file
from resources.delta.petastorm_caches import MANIFEST
from tests.support.images import jpeg


def test_a_home_s_cache_is_found_by_its_split_with_its_labels(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        folder = tmp_path / "caches" / f"{split}-v1-abc"
        folder.mkdir(parents=True)
        file = folder / "part-0.parquet"
        pq.write_table(pa.table({"content": [b"a", b"b"], "label_index": [0, 4]}), file)
        manifest = {"rows": 2, "files": {file.name: file.stat().st_size}, "content": "original", "color": "rgb"}
        (folder / MANIFEST).write_text(json.dumps(manifest))
    cache = cache_in(str(tmp_path), "validation")
    assert cache.name == "validation-v1-abc"
    assert json.dumps(labels_in(cache)) == "5"  # a plain number: frameworks reject numpy's


def test_rows_become_features_of_float32() -> None:
    spec = transform(lambda image: np.asarray(image, np.float32) / 255, (224, 224, 3))
    cached = {"image_id": ["a", "b"], "content": [jpeg(1), jpeg(2)], "label_index": [0, 1]}
    rows = spec.func(pd.DataFrame(cached))
    assert list(rows.columns) == ["features", "label_index"]
    assert {(of.shape, of.dtype.name) for of in rows["features"]} == {((224, 224, 3), "float32")}


def test_weights_come_from_a_folder_or_are_the_framework_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ASSETS_BACKBONE", "auto")
    assert weights_file("torch") is None
    monkeypatch.setenv("IMAGE_ASSETS_BACKBONE", "/weights")
    assert weights_file("torch") == Path("/weights/mobilenet_v2_features.pth")


def test_each_epoch_ends_later_than_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_ANSWER", str(tmp_path / "answer.json"))
    clock = EpochClock()
    clock.tell(0.5)
    clock.tell(0.75)
    clock.answer()
    report = json.loads((tmp_path / "answer.json").read_text())
    assert [epoch["validation_accuracy"] for epoch in report["epochs"]] == [0.5, 0.75]
    assert report["epochs"][0]["seconds"] <= report["epochs"][1]["seconds"] == report["work_seconds"]
