"""The predictions that are shown: those of one version for the current files, the same through delta-rs and Spark."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from image_assets.data.image_files import Decision, merge_decisions
from image_assets.data.inspection import CURRENT, MISSING, QUARANTINED
from image_assets.predictions.current_predictions import (
    current_predictions,
    of_current_files,
    read_of_current_files,
    update,
)
from image_assets.predictions.prediction_checks import keys_unique, probabilities_sum_to_one
from image_assets.schemas import CURRENT_PREDICTIONS, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.spark_session import DeltaSpark
from resources.delta.table import file_layout
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from tests.conftest import tables_in

GONE = "file:/nowhere/"  # the folder of files that have no thumbnail any more
KEY = {"model_name": "image_classifier", "model_version": 2, "version_id": "run 2"}
OTHER = {**KEY, "model_version": 1, "version_id": "run 1"}


def prediction(path: str, image_id: str = "1", key: Mapping[str, Any] = KEY, **answer: Any) -> dict[str, Any]:
    answers = {"label": "rose", "probability": 0.75, "probabilities": [0.75, 0.25]} | answer
    at = {"framework": "torch", "device": "cpu", "predicted_at": datetime(2026, 6, 1, 12, 0, 0, 123456, UTC)}
    return {"path": f"{GONE}{path}", "image_id": image_id, **key, **answers, **at}


PREDICTIONS = [
    prediction("a"),
    prediction("a", image_id="of an earlier file"),
    prediction("a", key=OTHER),
    prediction("b", label=None, probability=None, probabilities=None, fault="unreadable"),
    prediction("gone"),
    prediction("bad"),
    prediction("c", label="lily", probability=0.5, probabilities=[0.5, 0.5]),
]


def fill(tables: DeltaTables, rows: list[dict[str, Any]]) -> DeltaTables:
    tables.create(IMAGE_PREDICTIONS)
    files = list(write_files(rows, tables.uri(IMAGE_PREDICTIONS), file_layout(IMAGE_PREDICTIONS)))
    tables.append_files(IMAGE_PREDICTIONS, files)
    states = {"a": CURRENT, "b": CURRENT, "c": CURRENT, "not predicted": CURRENT, "gone": MISSING, "bad": QUARANTINED}
    decisions = [Decision(f"{GONE}{path}", state, image_id="1", length=1) for path, state in states.items()]
    merge_decisions(tables, decisions)
    return tables


def shown(tables: DeltaTables) -> list[dict[str, Any]]:
    rows = tables.read(CURRENT_PREDICTIONS, CURRENT_PREDICTIONS.columns.fieldNames()).to_pylist()
    return sorted(rows, key=lambda row: row["path"])


@pytest.mark.spark
@pytest.mark.parametrize(("key", "paths"), [(KEY, ["a", "b", "c"]), (OTHER, ["a"]), (None, [])])
def test_both_ways_write_the_same_rows(
    delta_spark: DeltaSpark, home: Path, key: Mapping[str, object] | None, paths: list[str]
) -> None:
    tables = fill(tables_in(home, delta_spark), PREDICTIONS)
    rows = of_current_files(tables.dataframe(IMAGE_PREDICTIONS), tables.dataframe(IMAGE_FILES), key)
    tables.overwrite(rows, CURRENT_PREDICTIONS, note="by Spark")
    by_spark, schema = shown(tables), tables.dataframe(CURRENT_PREDICTIONS).schema
    tables.overwrite_rows(read_of_current_files(tables, key), CURRENT_PREDICTIONS, note="by delta-rs")
    assert [row["path"].removeprefix(GONE) for row in shown(tables)] == paths
    assert shown(tables) == by_spark
    assert tables.dataframe(CURRENT_PREDICTIONS).schema == schema
    assert tables.last_note(CURRENT_PREDICTIONS) == "by delta-rs"


def test_the_asset_shows_them_without_spark_and_writes_nothing_again(home: Path, registry: ModelRegistry) -> None:
    tables = fill(tables_in(home, DeltaSpark(spark_config={})), PREDICTIONS)
    with dg.DagsterInstance.ephemeral() as instance:
        metadata = {"serving_version": "2", "serving_version_id": "run 2"}
        instance.report_runless_asset_event(dg.AssetMaterialization("image_predictions", metadata=metadata))
        for version in (1, 1):
            run = dg.materialize(
                [current_predictions],
                instance=instance,
                resources={
                    "delta_tables": tables,
                    "model_registry": registry,
                    "image_folder": ImageFolder(root=str(home)),
                },
            )
            assert run.success
            assert [row["path"].removeprefix(GONE) for row in shown(tables)] == ["a", "b", "c"]
            assert tables.version(CURRENT_PREDICTIONS) == version
        (found,) = run.asset_materializations_for_node("current_predictions")
        assert "least certain" in str(found.metadata["least_certain"].value)


CHANGES = {
    "nothing": ([], [], ["a", "b", "c"], 0),
    "a new image": ([prediction("d")], [Decision(f"{GONE}d", CURRENT, image_id="1")], ["a", "b", "c", "d"], 1),
    "a deleted file": ([], [Decision(f"{GONE}b", MISSING)], ["a", "c"], 1),
    "a replaced file": (
        [prediction("a", image_id="2", label="lily")],
        [Decision(f"{GONE}a", CURRENT, image_id="2")],
        ["a", "b", "c"],
        1,
    ),
    "all files deleted": ([], [Decision(f"{GONE}{path}", MISSING) for path in "abc"], [], 1),
    "another version": ([prediction("c", key=OTHER)], [], ["a", "c"], 1),
}


@pytest.mark.parametrize(("rows", "decisions", "paths", "commits"), CHANGES.values(), ids=CHANGES)
def test_only_changed_rows_are_written(
    home: Path, rows: list[dict[str, Any]], decisions: list[Decision], paths: list[str], commits: int
) -> None:
    tables = fill(tables_in(home, DeltaSpark(spark_config={})), PREDICTIONS)
    update(tables, KEY, "before")
    assert tables.version(CURRENT_PREDICTIONS) == 1
    if rows:
        files = list(write_files(rows, tables.uri(IMAGE_PREDICTIONS), file_layout(IMAGE_PREDICTIONS)))
        tables.append_files(IMAGE_PREDICTIONS, files)
    merge_decisions(tables, decisions)
    key = OTHER if rows and rows[0]["version_id"] == OTHER["version_id"] else KEY
    update(tables, key, "after")
    found = shown(tables)
    assert [row["path"].removeprefix(GONE) for row in found] == paths
    assert tables.version(CURRENT_PREDICTIONS) == 1 + commits
    assert tables.last_note(CURRENT_PREDICTIONS) == ("after" if commits else "before")
    tables.overwrite_rows(read_of_current_files(tables, key), CURRENT_PREDICTIONS)
    assert shown(tables) == found, "as if all rows were written"


NOT_ONE = prediction("c", probabilities=[0.5, 0.4])
NOT_A_NUMBER = prediction("c", probabilities=[float("nan"), 1.0])


@pytest.mark.parametrize(
    ("more", "repeated", "wrong"),
    [([], 0, 0), ([prediction("a")], 1, 0), ([NOT_ONE], 1, 1), ([NOT_A_NUMBER, prediction("d")], 1, 1)],
)
def test_checks_find_repeated_keys_and_sums_without_spark(
    home: Path, more: list[dict[str, Any]], repeated: int, wrong: int
) -> None:
    tables = fill(tables_in(home, DeltaSpark(spark_config={})), PREDICTIONS + more)
    assert keys_unique(tables).metadata["repeated_keys"].value == repeated
    assert probabilities_sum_to_one(tables).metadata["predictions_off"].value == wrong


def test_rows_without_spark_keep_their_types(home: Path) -> None:
    tables = fill(tables_in(home, DeltaSpark(spark_config={})), PREDICTIONS)
    tables.overwrite_rows(read_of_current_files(tables, KEY), CURRENT_PREDICTIONS)
    assert shown(tables) == [
        dict.fromkeys(CURRENT_PREDICTIONS.columns.fieldNames()) | PREDICTIONS[number] for number in (0, 3, 6)
    ]
    tables.overwrite_rows(read_of_current_files(tables, None), CURRENT_PREDICTIONS)
    assert shown(tables) == []
    assert isinstance(tables.read(CURRENT_PREDICTIONS, ["path"]), pa.Table)
