"""What a version must be able to do before it serves."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest

from image_assets.models.evaluation import Comparison
from image_assets.models.promotion_gate import (
    LINEAGE,
    as_accurate,
    backbone_trained,
    files_as_logged,
    lineage_known,
    same_labels,
    same_signature,
    sound_answers,
    to_report,
)
from resources.mlflow.model_registry import ModelVersion

LABELS = ["ball", "cube"]


def version(number: int, **tags: str) -> ModelVersion:
    return ModelVersion(number, "None", (), "", f"models:/image_classifier/{number}", tags)


def labeled(number: int, *labels: str) -> ModelVersion:
    return version(number, labels=json.dumps(labels))


def test_a_version_without_lineage_is_told_what_it_lacks() -> None:
    tags = dict.fromkeys(LINEAGE, "given")
    assert lineage_known(version(1, **tags)).passed
    del tags["table_versions"]
    found = lineage_known(version(1, **tags))
    assert (found.passed, "table_versions" in found.detail, "framework" in found.detail) == (False, True, False)


@pytest.mark.parametrize(("backbone", "passed"), [("imagenet", True), ("folder", True), ("untrained", False)])
def test_an_untrained_backbone_does_not_serve(backbone: str, passed: bool) -> None:
    assert backbone_trained(version(1, backbone=backbone)).passed is passed


def test_a_version_that_does_not_say_its_backbone_does_not_serve() -> None:
    assert not backbone_trained(version(1)).passed


def signature(inputs: str | None = "bytes", outputs: Sequence[str] = ("label",), params: str | None = None) -> str:
    columns = json.dumps([{"type": "string", "name": name, "required": True} for name in outputs])
    return json.dumps({"inputs": inputs, "outputs": columns, "params": params})


@pytest.mark.parametrize(
    ("found", "former", "passed"),
    [
        (signature(), signature(), True),
        (signature("text"), signature("bytes"), False),
        (signature(outputs=["number"]), signature(), False),
        (signature(outputs=["label", "abstained"]), signature(), True),  # a column that earlier releases lack
        (signature(), signature(outputs=["label", "abstained"]), True),  # a rollback to one of these
        (signature(outputs=["label", "number"]), signature(), False),
        (signature(None, params="top_k"), signature("bytes"), True),
        (signature("bytes"), signature(None, params="top_k"), True),  # a rollback to an earlier release's version
        ("null", "null", True),
        ("null", signature(), False),
    ],
)
def test_a_version_returns_the_same_columns_for_the_same_inputs(found: str, former: str, passed: bool) -> None:
    finding = same_signature(found, former)
    assert finding.passed is passed
    assert finding.detail == (found if passed else f"found {found}, expected {former}")


@pytest.mark.parametrize(
    ("labels", "mapping", "passed", "detail"),
    [
        (["ball", "cube"], {}, True, "ball, cube"),
        (["cube", "ball"], {}, True, "cube, ball"),
        (["ball", "cone", "cube"], {}, True, "ball, cone, cube; new: cone"),
        (["ball"], {}, False, "ball; version 1 also has cube: map each of them"),
        (["ball", "box"], {}, False, "ball, box; new: box; version 1 also has cube"),
        (["ball", "box"], {"cube": "box"}, True, "ball, box; cube is now box"),
        (["ball", "box"], {"cube": "ball"}, True, "ball, box; new: box; cube is now ball"),
        (["ball", "box"], {"ball": "box"}, False, "version 1 also has cube"),
        (["ball", "box"], {"cube": "sphere"}, False, "version 1 also has cube"),
        (
            ["ball", "cube"],
            {"cub": "ball"},
            False,
            "label_mapping names cub: expected labels of the production version",
        ),
    ],
)
def test_only_removed_labels_need_a_mapping(
    labels: list[str], mapping: dict[str, str], passed: bool, detail: str
) -> None:
    finding = same_labels(labeled(2, *labels), labeled(1, *LABELS), mapping)
    assert finding.passed is passed
    assert detail in finding.detail


def test_the_first_version_needs_labels_only() -> None:
    assert same_labels(labeled(1, *LABELS), None, {}).passed
    assert not same_labels(labeled(1), None, {}).passed


@pytest.mark.parametrize("tag", ["daisy, roses", '"daisy"', "[1, 2]", "{}", "null", "["])
def test_labels_that_are_no_list_are_unknown(tag: str) -> None:
    version = replace(labeled(1), tags={"labels": tag})
    assert version.labels == []
    assert same_labels(version, None, {}).detail == f"the tag labels is {tag!r}; expected a JSON list of texts"


@pytest.mark.parametrize(("logged", "passed"), [("a", True), ("b", False), (None, False)])
def test_files_that_are_not_those_that_were_logged_do_not_serve(logged: str | None, passed: bool) -> None:
    assert files_as_logged("a", logged).passed is passed


def answers(**changed: object) -> pd.DataFrame:
    """A good answer to an image, changed, and none to a broken file."""
    good = {"broken": False, "label": "ball", "probability": 0.75, "probabilities": [0.75, 0.25], **changed}
    return pd.DataFrame([good, {"broken": True, "label": None, "probability": None, "probabilities": None}])


def test_sound_answers_pass() -> None:
    found = sound_answers(answers(), LABELS)
    assert found.passed
    assert found.detail == "1 images and 1 broken files"


def test_a_version_may_abstain_if_it_says_what_is_most_probable() -> None:
    assert sound_answers(answers(label=None, most_probable_label="ball"), LABELS).passed
    broken = answers(broken=True, label=None, most_probable_label="ball")
    assert "a broken file got the label ball" in sound_answers(broken, LABELS).detail


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"label": None}, "an image got no prediction"),
        ({"label": "cone"}, "the label cone: expected 2 of ball, cube"),
        ({"probabilities": [0.5, 0.25, 0.25]}, "3 probabilities"),
        ({"probabilities": [0.5, 0.25]}, "not a valid distribution"),
        ({"probabilities": [float("nan"), 0.25]}, "not a valid distribution"),
        ({"probabilities": [1.5, -0.5]}, "not a valid distribution"),
        ({"broken": True}, "a broken file got the label ball"),
    ],
)
def test_invalid_predictions_are_reported(changed: dict[str, object], detail: str) -> None:
    found = sound_answers(answers(**changed), LABELS)
    assert not found.passed
    assert detail in found.detail


@pytest.mark.parametrize(
    ("this", "p_value", "passed"),
    [(0.90, 1.0, True), (0.895, 1.0, True), (0.88, 1.0, False), (0.895, 0.01, False), (0.95, 0.01, True)],
)
def test_a_version_may_be_worse_by_the_tolerance_unless_it_is_so_for_sure(
    this: float, p_value: float, passed: bool
) -> None:
    assert as_accurate((this, 0.90), Comparison(1, 3, 4, p_value), tolerance=0.01).passed is passed


def test_the_report_has_a_line_for_each_finding() -> None:
    report = to_report([backbone_trained(version(1)), same_labels(labeled(1, "a|b"), None, {})]).splitlines()
    assert report[2].startswith("| ✗ | backbone")
    assert report[3] == "| ✓ | labels | a/b |"
