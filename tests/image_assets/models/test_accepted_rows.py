"""The cases of the page "What is accepted" about predictions: a version of a few nodes, loaded as MLflow loads it."""

import base64
import json
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel, scoring_server
from PIL import Image

from image_assets.models.image_classifier import ANSWER_COLUMNS
from scripts.accepted import PREDICTIONS
from tests.support.brightness_version import saved_brightness
from tests.support.image_files import heif, saved, tiff
from tests.support.images import picture

CASES = Path(__file__).parents[4] / "shared" / "cases" / "files"
SIZE = (320, 200)
TESTED = {
    "by_content_and_path": "test_an_image_has_one_answer_by_content_and_by_path",
    "12_bits_predicted": "test_an_image_has_one_answer_by_content_and_by_path",
    "61_megapixels_predicted": "test_a_large_photograph_has_one_answer",
    "lists": "test_lists_single_images_and_pixels_have_the_answer_of_a_frame",
    "pixels": "test_lists_single_images_and_pixels_have_the_answer_of_a_frame",
    "other_pixels": "test_another_input_is_an_error_that_says_what_is_expected",
    "no_column": "test_another_input_is_an_error_that_says_what_is_expected",
    "base64_predicted": "test_each_kind_of_row_is_answered_or_null",
    "path_objects": "test_each_kind_of_row_is_answered_or_null",
    "bytes_like": "test_each_kind_of_row_is_answered_or_null",
    "unreadable": "test_each_kind_of_row_is_answered_or_null",
}
LEVELS = np.asarray(picture(1, SIZE).convert("L"))
PHOTOGRAPH = saved(Image.fromarray(LEVELS), "PNG")
TEXT = base64.b64encode(PHOTOGRAPH).decode()
PIXELS = np.repeat(LEVELS[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PyFuncModel:
    """A version whose probability of `bright` is the image's mean brightness."""
    return mlflow.pyfunc.load_model(str(saved_brightness(tmp_path_factory.mktemp("version"))))


def brightness(version: PyFuncModel, **columns: list) -> list[float | None]:
    """The probability of `bright` of each row; None where the row has no answer."""
    answers = version.predict(pd.DataFrame({name: pd.Series(of, dtype=object) for name, of in columns.items()}))
    return [None if of is None else of[0] for of in answers["probabilities"]]


def served(version: PyFuncModel, request_body: dict) -> str:
    """What MLflow's server answers."""
    body = json.dumps(request_body)
    return scoring_server.invocations(body, "application/json", version, version.metadata.get_input_schema()).response


def test_every_case_of_the_page_has_a_test() -> None:
    assert {case.name for case in PREDICTIONS} == set(TESTED)
    assert set(TESTED.values()) <= set(globals())


@pytest.mark.parametrize(
    "content",
    [
        PHOTOGRAPH,
        tiff(LEVELS.astype(np.uint16) * 16),
        tiff(LEVELS.astype(np.float64) / 255),
        tiff(65535 - LEVELS.astype(np.uint16) * 257, photometric="miniswhite"),
        heif(Image.fromarray(LEVELS).convert("RGB")),
    ],
    ids=["8 bits", "12 bits", "float64", "white is zero", "heic"],
)
def test_an_image_has_one_answer_by_content_and_by_path(version: PyFuncModel, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    by_content, by_path = brightness(version, content=[content, None], path=[None, str(tmp_path / "image")])
    assert by_content == by_path == pytest.approx(LEVELS.mean() / 255, abs=0.01)


def test_a_large_photograph_has_one_answer(version: PyFuncModel, tmp_path: Path) -> None:
    large = Image.fromarray(LEVELS).resize((9504, 6336), Image.Resampling.NEAREST)
    content = saved(large, "JPEG", quality=40)
    (tmp_path / "image").write_bytes(content)
    by_content, by_path = brightness(version, content=[content, None], path=[None, str(tmp_path / "image")])
    assert by_content == by_path == pytest.approx(LEVELS.mean() / 255, abs=0.01)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pd.DataFrame({"image": [PHOTOGRAPH]}), r"the columns \['image'\], but neither `content` nor `path`"),
        (pd.DataFrame({"image": []}), r"the columns \['image'\]"),
        (pd.DataFrame([["a", "b", "c"]]), r"the columns \[0, 1, 2\]"),
        (pd.DataFrame([[PHOTOGRAPH] * 2], columns=pd.Index(["content", "content"])), "several columns of one name"),
        ({"image": [PHOTOGRAPH]}, r"the columns \['image'\]"),
        ({"content": [PHOTOGRAPH], "path": ["a", "b"]}, r"different numbers of images: \[1, 2\]"),
        ([{"image": PHOTOGRAPH}], "an image is a dict; expected a DataFrame"),
        ([PHOTOGRAPH, 5], "an image is a int; expected a DataFrame"),
        (5, "the input is a int; expected a DataFrame"),
        (None, "the input is a NoneType; expected a DataFrame"),
        (BytesIO(PHOTOGRAPH), "the input is a BytesIO; expected a DataFrame"),
        ({"content": [PIXELS / 255]}, "pixels are float64: expected integers from 0 to 255"),
        ([{"content": PIXELS / 255}], "pixels are float64: expected integers from 0 to 255"),
        (pd.Series([PIXELS / 255], name="content"), "pixels are float64: expected integers from 0 to 255"),
        (PIXELS / 255, "pixels are float64: expected integers from 0 to 255"),
        (PIXELS.astype(np.uint16) * 257, r"pixels are from \d+ to \d{5}: expected"),
        (PIXELS.transpose(2, 0, 1), r"an array of shape \(3, 200, 320\)"),
        (PIXELS[None].transpose(0, 3, 1, 2), r"pixels have the shape \(3, 200, 320\)"),
        (PIXELS[:0], r"pixels have the shape \(0, 320, 3\)"),
        (PIXELS.ravel(), r"an array of shape \(192000,\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_another_input_is_an_error_that_says_what_is_expected(
    version: PyFuncModel, images: object, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        version.predict(images)


def test_lists_single_images_and_pixels_have_the_answer_of_a_frame(version: PyFuncModel, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(PHOTOGRAPH)
    url = f"data:image/png;base64,{base64.b64encode(PHOTOGRAPH).decode()}"
    (expected,) = brightness(version, content=[PHOTOGRAPH])
    for single in (str(file), file, PHOTOGRAPH, PIXELS, PIXELS.astype(int), LEVELS, LEVELS[:, :, None], url):
        answers = version.predict(single)
        assert (len(answers), answers["probabilities"][0][0]) == (1, expected)
    mixed = [str(file), PHOTOGRAPH, "missing.png", None, PIXELS, {"path": str(file)}, b"no image"]
    found = [expected, expected, None, None, expected, expected, None]
    for images in (mixed, tuple(mixed), iter(mixed), np.array(mixed, object), pd.Series(mixed), {"path": mixed[:0]}):
        answers = version.predict(images)
        assert [None if of is None else of[0] for of in answers["probabilities"]] == found[: len(answers)]
        assert len(answers) == (0 if isinstance(images, dict) else len(mixed))
    for batch in (np.stack([PIXELS] * 3), {"content": np.stack([PIXELS] * 3)}, np.array([str(file)] * 3)):
        assert [of[0] for of in version.predict(batch)["probabilities"]] == [expected] * 3
    assert len(version.predict([])) == len(version.predict(np.zeros((0, 8, 8, 3), np.uint8))) == 0


def test_the_example_that_a_version_is_logged_with_has_an_answer(version: PyFuncModel) -> None:
    assert version.predict(version.input_example)["label"].notna().tolist() == [True]


def test_rows_keep_the_index_of_their_input(version: PyFuncModel) -> None:
    by_name = pd.Series([PHOTOGRAPH, base64.b64encode(PHOTOGRAPH).decode()], index=["a", "b"], name="content")
    for images in (by_name, by_name.to_frame(), by_name.to_frame().assign(label="rose")):
        answers = version.predict(images)
        assert answers.index.tolist() == ["a", "b"]
        assert answers["label"].notna().all()


def test_columns_without_names_are_told_apart_by_their_values(version: PyFuncModel, tmp_path: Path) -> None:
    """As Spark passes them: `udf("content", "path")`."""
    file = tmp_path / "image.png"
    file.write_bytes(PHOTOGRAPH)
    for rows in ([[PHOTOGRAPH, "missing"], [None, str(file)], [None, None]], [[PHOTOGRAPH], [str(file)], [None]]):
        frame = pd.DataFrame(rows).rename(columns=str)
        assert version.predict(frame)["label"].notna().tolist() == [True, True, False]


def test_params_add_the_best_labels_and_probabilities_by_label(version: PyFuncModel) -> None:
    images = [PHOTOGRAPH, b"no image"]
    (of, _), names = version.predict(images)["probabilities"], ["bright", "dark"]
    order = sorted(range(2), key=lambda label: -of[label])
    for top_k in (1, 2, 9):
        answers = version.predict(images, params={"top_k": top_k})
        assert list(answers)[-2:] == ["top_labels", "top_probabilities"]
        assert answers["top_labels"].tolist() == [[names[label] for label in order[:top_k]], None]
        assert answers["top_probabilities"].tolist() == [[of[label] for label in order[:top_k]], None]
    answers = version.predict(images, params={"probabilities_by_label": True})
    assert answers["probabilities_by_label"].tolist() == [dict(zip(names, of, strict=True)), None]
    with pytest.raises(ValueError, match="top_k is -1: expected the number of labels"):
        version.predict(images, params={"top_k": -1})


def test_a_prediction_can_be_explained(version: PyFuncModel) -> None:
    half = np.zeros((*LEVELS.shape, 3), np.uint8)
    half[:, : half.shape[1] // 2] = 255
    half[-20:, -20:] = 255  # 52 % of the image
    content = saved(Image.fromarray(half), "PNG")
    answers = version.predict([content, b"no image"], params={"explain": True})
    assert list(answers) == [*ANSWER_COLUMNS, "heat"]
    heat, nothing = answers["heat"]
    assert nothing is None
    assert answers["label"][0] == "bright"
    heat = np.array(heat)
    assert heat.shape == (8, 8)
    assert heat[:, :3].min() > 0.02
    assert heat[:6, 5:].max() < 0.01, "dark parts say nothing for `bright`"
    request_body = {"dataframe_records": [{"content": TEXT}], "params": {"explain": True}}
    assert np.shape(json.loads(served(version, request_body))["predictions"][0]["heat"]) == (8, 8)


def test_each_kind_of_row_is_answered_or_null(version: PyFuncModel, tmp_path: Path) -> None:
    (tmp_path / "a %.png").write_bytes(PHOTOGRAPH)
    text = base64.b64encode(PHOTOGRAPH).decode()
    contents = [PHOTOGRAPH, bytearray(PHOTOGRAPH), memoryview(PHOTOGRAPH), text, f"data:image/png;base64,{text}"]
    unreadable = ["no base64!", "YWJj", 5, 5.5, [1, 2], {}, float("nan"), None, b"", b"<html>", PHOTOGRAPH[:-50]]
    found = brightness(version, content=[*contents, *unreadable])
    expected = pytest.approx(LEVELS.mean() / 255, abs=0.01)
    assert found == [*[expected] * len(contents), *[None] * len(unreadable)]
    paths = [tmp_path / "a %.png", str(tmp_path / "a %.png"), f"file:{tmp_path}/a%20%25.png"]
    missing = [tmp_path, tmp_path / "b", "", 5, None, "a\0b", "http://127.0.0.1/a.png", b"a"]
    assert brightness(version, path=[*paths, *missing]) == [*[expected] * len(paths), *[None] * len(missing)]


@pytest.mark.parametrize(
    "request_body",
    [
        {"dataframe_split": {"columns": ["content"], "data": [[TEXT], ["no base64"]]}},
        {"dataframe_records": [{"path": "missing"}, {"content": TEXT}]},
        {"instances": [{"content": TEXT}, {"content": TEXT}]},
        {"inputs": [f"data:image/png;base64,{TEXT}", "missing"]},
        {"inputs": np.stack([PIXELS[:8, :8]] * 2).tolist()},
        {"instances": np.stack([PIXELS[:8, :8]] * 2).tolist()},
        {"inputs": [f"data:image/png;base64,{TEXT}"] * 2, "params": {"top_k": 1}},
    ],
    ids=lambda body: "+".join(body),
)
def test_requests_to_a_server_have_one_row_per_image(version: PyFuncModel, request_body: dict) -> None:
    answers = json.loads(served(version, request_body))["predictions"]
    assert len(answers) == 2
    assert {"bright", "dark"} & {answer["label"] for answer in answers}
    assert ("top_labels" in answers[0]) == ("params" in request_body)


def test_a_server_says_what_is_expected(version: PyFuncModel) -> None:
    with pytest.raises(mlflow.MlflowException) as raised:
        served(version, {"dataframe_records": [{"image": TEXT}]})
    assert (raised.value.get_http_status_code(), "neither `content` nor" in raised.value.serialize_as_json()) == (
        400,
        True,
    )


@pytest.mark.parametrize("name", ["12 bit in 16.tif", "12 bit in 16.png", "photoshop lab.tif", "hot pixel uint32.tif"])
def test_a_reported_file_has_the_answer_of_the_reference(version: PyFuncModel, name: str) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no files in {CASES}")
    with Image.open(CASES / "reference.png") as image:
        reference = saved(image if name == "photoshop lab.tif" else image.convert("L"), "PNG")
    found, expected = brightness(version, content=[(CASES / name).read_bytes(), reference])
    assert found == pytest.approx(expected, abs=0.01)
