"""Figures of each day's answers, and the jumps among them."""

from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyspark.sql.pandas.types import to_arrow_schema

from image_assets.images.isolated_process import ItemFailure
from image_assets.models.version_ids import key_of
from image_assets.predictions.embedding_distances import discrepancy, embedding_distances
from image_assets.predictions.prediction_checks import drift_is_small
from image_assets.predictions.prediction_drift import (
    ARRIVALS,
    MIN_DAYS,
    DriftConfig,
    confidence,
    days_to_embed,
    figures_by_day,
    is_new,
    jumps,
    label_shares,
    prediction_drift,
)
from image_assets.schemas import IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS, PREDICTION_DRIFT
from resources.delta.delta_tables import DeltaTables
from resources.delta.queries import querying
from resources.delta.table import Table
from resources.mlflow.model_registry import ModelRegistry, ModelVersion
from tests.support.registered_versions import registered, saved_model, saved_pickle

LABELS = ["ball", "cube"]
MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
ANSWERS = pa.schema(
    [
        *(("day", pa.date32()), ("label", pa.string()), ("probability", pa.float32())),
        *(("probabilities", pa.list_(pa.float32())), ("is_test", pa.bool_())),
    ]
)
NOTHING = """
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


    class Nothing(PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input


    set_model(Nothing())
"""


def answers(balls: int, cubes: int, probability: float = 0.9) -> pd.DataFrame:
    """So many answers of each label."""
    other = 1 - probability
    ball, cube = [probability, other], [other, probability]
    rows = [*[("ball", probability, ball)] * balls, *[("cube", probability, cube)] * cubes]
    return pd.DataFrame(rows, columns=["label", "probability", "probabilities"])


def figures(given: pd.DataFrame, tested: pd.DataFrame, labels: list[str], threshold: float) -> dict[str, Any]:
    """The figures of one day; the test split arrived on another one."""
    rows = [row | {"day": MONDAY.date(), "is_test": False} for row in given.to_dict("records")]
    rows += [row | {"day": date(2027, 1, 1), "is_test": True} for row in tested.to_dict("records")]
    with querying(answers=pa.Table.from_pylist(rows, ANSWERS)) as connection:
        found = figures_by_day(connection, labels, threshold)[0]
    return {name: value for name, value in found.items() if name != "day"}


def days(*measured: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{"day": date(2026, 3, number + 1), **row} for number, row in enumerate(measured)])


def measured(balls: int, cubes: int, probability: float = 0.9) -> dict[str, Any]:
    return {**figures(answers(balls, cubes, probability), answers(10, 10), LABELS, 0.6), "embedding_distance": None}


def test_the_figures_of_a_day_count_what_was_answered() -> None:
    rows = [*answers(3, 0).to_numpy().tolist(), ["cube", 0.5, [0.5, 0.5]], unanswered := [None, None, None]]
    given = pd.DataFrame(rows, columns=["label", "probability", "probabilities"])
    found = figures(given, answers(2, 2), LABELS, 0.6)
    assert (found["images"], found["answered"], found["unsure_share"]) == (5, 4, 0.25)
    assert dict(zip(found["labels"], found["label_shares"], strict=True)) == {"ball": 0.75, "cube": 0.25}
    assert found["mean_probability"] == pytest.approx(0.8)
    nothing = figures(pd.DataFrame([unanswered], columns=given.columns), answers(2, 2), LABELS, 0.6)
    assert (nothing["images"], nothing["answered"], nothing["label_shares"]) == (1, 0, None)
    assert nothing["answer_distance"] is None


def test_the_distance_is_zero_for_the_same_answers_and_one_for_none_in_common() -> None:
    def distance(*of: int) -> float:
        return figures(answers(*of, probability=1.0), answers(5, 5, 1.0), LABELS, 0.6)["answer_distance"]

    assert distance(7, 7) == pytest.approx(0, abs=1e-6)
    assert 0 < distance(6, 5) < distance(9, 5) < distance(9, 0)
    only = figures(answers(3, 0, 1.0), answers(0, 3, 1.0), LABELS, 0.6)
    assert only["answer_distance"] == pytest.approx(1)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Pacific/Auckland"])
def test_an_image_arrives_when_its_file_does_and_what_replaces_it_when_it_is_predicted(zone: str) -> None:
    later = [MONDAY + timedelta(days=number) for number in range(4)]
    predicted = [("a", "1", later[1]), ("a", "1", later[2]), ("a", "2", later[3]), ("b", "3", later[3])]
    columns = dict(zip(("path", "image_id", "predicted_at"), zip(*predicted, strict=True), strict=True))
    files = pa.table({"path": ["a", "b"], "first_seen": [MONDAY, later[2]]})
    with querying(predicted=pa.table(columns), files=files) as connection:
        connection.execute(f"SET TimeZone = '{zone}'")  # that of the machine, unless it is set
        found = connection.execute(ARRIVALS).fetchall()
    assert {image_id: day for _, image_id, day in found} == {
        "1": date(2026, 3, 2),
        "2": date(2026, 3, 5),
        "3": date(2026, 3, 4),
    }


def test_a_jump_is_named_and_chance_is_none() -> None:
    random = np.random.default_rng(0)
    usual = [measured(number, 100 - number) for number in random.binomial(100, 0.5, 12)]
    for after in range(MIN_DAYS + 1, len(usual) + 1):
        assert jumps(days(*usual[:after])) == []
    found = jumps(days(*usual, measured(90, 10)))
    assert found
    assert found[0].startswith("share of ball was 0.90 on 2026-03-13: expected 0.4")
    less_sure = jumps(days(*usual, measured(50, 50, 0.55)))
    assert less_sure
    assert any("share of predictions with low confidence was 1.00" in one for one in less_sure)
    assert any("mean probability was 0.55" in one for one in less_sure)


def test_a_label_of_which_nobody_heard_is_a_jump() -> None:
    usual = [measured(50, 50)] * 8
    new = figures(answers(50, 20).replace({"label": {"cube": "cone"}}), answers(9, 9), LABELS, 0.6)
    found = jumps(days(*usual, {**new, "embedding_distance": None}))
    assert found
    assert any(one.startswith("share of cone was 0.29") for one in found)


def test_a_figure_that_comes_a_day_late_is_compared_when_it_comes() -> None:
    near = [{**measured(50, 50), "embedding_distance": 0.05 + number / 1000} for number in range(8)]
    assert jumps(days(*near, measured(50, 50))) == []
    found = jumps(days(*near, {**measured(50, 50), "embedding_distance": 0.5}, measured(50, 50)))
    assert found == [
        "distance of the images from the training images was 0.50 on 2026-03-09: expected 0.05 ± 0.02, "
        "the mean of the 8 days before"
    ]


def test_few_days_or_few_images_are_compared_with_nothing() -> None:
    usual = [measured(50, 50)] * MIN_DAYS
    assert jumps(days(*usual)) is None
    assert jumps(days(*usual, measured(5, 0))) is None
    assert jumps(days(*usual, measured(50, 50))) == []


def test_embeddings_of_the_same_kind_are_near_however_few_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    training = random.normal(size=(256, 64))
    few, many, shifted = (random.normal(size=(rows, 64)) + shift for rows, shift in ((20, 0), (256, 0), (256, 0.3)))
    near, nearer, far = (discrepancy(of_day, training) for of_day in (few, many, shifted))
    assert near is not None
    assert nearer is not None
    assert far is not None
    assert max(near, nearer) < 0.06 < far
    assert discrepancy(few[:1], training) is None


def test_days_are_embedded_once_when_they_are_over() -> None:
    all_days = [date(2026, 3, number) for number in range(1, 13)]
    measured = [(date(2026, 3, 9), datetime(2026, 3, 10, tzinfo=UTC)), (date(2026, 3, 10), datetime(2026, 3, 10, 23))]
    known = pd.DataFrame(measured, columns=["day", "measured_at"])
    now = datetime(2026, 3, 12, 1, tzinfo=UTC)
    assert [day.day for day in days_to_embed(all_days, known, now)] == [5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("labels", [2, 30])
def test_pictures_are_small_whatever_they_show(labels: int) -> None:
    names = [f"label ${number}$" for number in range(labels)]
    one = figures(answers(3, 2), answers(2, 2), [*LABELS, *names], 0.6)
    rows = [{**one, "day": date(2026, 1, 1) + timedelta(days=number)} for number in range(90)]
    shown = pd.DataFrame(rows).assign(embedding_distance=None)
    for picture in (label_shares(shown), confidence(shown)):
        assert Image.open(BytesIO(picture)).size == (900, 360)
        assert len(picture) < 100_000


def add(delta_tables: DeltaTables, table: Table, rows: list[dict[str, Any]]) -> None:
    schema = to_arrow_schema(table.columns)
    whole = [{**dict.fromkeys(schema.names), **row} for row in rows]
    delta_tables.merge(pa.Table.from_pylist(whole, schema), table, updates={table.keys[0]: f"new.{table.keys[0]}"})


def test_days_are_measured_again_and_the_check_warns(
    delta_tables: DeltaTables, registry: ModelRegistry, tmp_path: Any
) -> None:
    tags = {"labels": '["ball", "cube"]'}
    registered(saved_model(NOTHING, tmp_path, "nothing"), registry, tags, (tmp_path / "artifacts").as_uri())
    config, resources = DriftConfig(), {"delta_tables": delta_tables, "model_registry": registry}
    assert prediction_drift(config, **resources).metadata["serving_version"] == "none"
    registry.promote(1, "Production")
    for number in range(8):
        now = MONDAY + timedelta(days=number)
        given = answers(15, 15) if number < 7 else answers(29, 1)
        keys = [{"path": f"file:/{number}/{row}", "image_id": f"{number}-{row}"} for row in range(len(given))]
        rows = given.assign(**key_of(registry.version(1)), predicted_at=now).to_dict("records")
        add(delta_tables, IMAGE_PREDICTIONS, [{**key, **row} for key, row in zip(keys, rows, strict=True)])
        add(delta_tables, IMAGE_FILES, [{"path": key["path"], "first_seen": now} for key in keys])
        if number == 0:
            add(delta_tables, IMAGE_SPLITS, [{**key, "split": "test"} for key in keys])
        if number in (0, 6, 7):
            made = prediction_drift(config, **resources)
            check = drift_is_small(**resources)
            assert check.passed is (number < 7)
    assert made.metadata["dagster/row_count"] == 8
    again = prediction_drift(config, **resources)
    assert again.metadata["delta_version"] == made.metadata["delta_version"], "nothing is new"
    assert {"label_shares", "confidence"} <= set(made.metadata)
    assert "classifier" in made.metadata["embedding_fault"]  # it has no network
    assert "share of ball was 0.97 on 2026-03-09" in check.description
    rows = delta_tables.read(PREDICTION_DRIFT, ["day", "images", "label_shares", "answer_distance"]).to_pylist()
    assert {row["images"] for row in rows} == {30}
    assert min(row["answer_distance"] for row in rows) == pytest.approx(0, abs=1e-6)


def test_metrics_are_new_unless_the_same_version_has_them_on_the_same_day(delta_tables: DeltaTables) -> None:
    schema = to_arrow_schema(PREDICTION_DRIFT.columns)
    versions = [ModelVersion(number, "None", (), f"run {number}", "", {}) for number in (1, 2)]

    def rows(version: ModelVersion, images: int) -> list[dict[str, Any]]:
        row = {**key_of(version), "day": MONDAY.date(), "images": images}
        return [{**dict.fromkeys(schema.names), **row}, {**dict.fromkeys(schema.names), **row, "day": date(2026, 3, 3)}]

    for version in versions:
        add(delta_tables, PREDICTION_DRIFT, rows(version, 10 * version.version)[:1])
    for version in versions:
        for images in (10, 20):
            measured = pa.Table.from_pylist(rows(version, images), schema)
            assert is_new(measured, version, delta_tables) == [images != 10 * version.version, True]


def test_a_pickled_version_is_not_loaded_for_its_embeddings(
    delta_tables: DeltaTables, registry: ModelRegistry, tmp_path: Any
) -> None:
    pickle, created = saved_pickle(tmp_path, "pickle")
    version = registered(pickle, registry, {}, (tmp_path / "artifacts").as_uri())
    found = embedding_distances(delta_tables, registry, version, pd.DataFrame(columns=["path", "image_id", "day"]), 10)
    assert isinstance(found, ItemFailure)
    assert "is not stored as code" in found.message
    assert not created.exists()
