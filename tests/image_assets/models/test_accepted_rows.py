"""The cases of the page "What is accepted" about predictions: a version of a few nodes, loaded as MLflow loads it."""

import base64
import json
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

from image_assets.images.pixels import Reading
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import classifier_signature, copy_decoding
from scripts.accepted import PREDICTIONS
from tests.support.image_files import heif, saved, tiff
from tests.support.images import picture

MODELS = Path(__file__).parents[3] / "image_assets" / "models"
CASES = Path(__file__).parents[4] / "shared" / "cases" / "files"
SIDE = 32
SIZE = (320, 200)
TESTED = {
    "by_content_and_path": "test_an_image_has_one_answer_by_content_and_by_path",
    "12_bits_predicted": "test_an_image_has_one_answer_by_content_and_by_path",
    "61_megapixels_predicted": "test_a_large_photograph_has_one_answer",
    "no_column": "test_a_frame_without_images_is_an_error_that_names_the_columns",
    "base64_predicted": "test_each_kind_of_row_is_answered_or_null",
    "path_objects": "test_each_kind_of_row_is_answered_or_null",
    "bytes_like": "test_each_kind_of_row_is_answered_or_null",
    "unreadable": "test_each_kind_of_row_is_answered_or_null",
}
LEVELS = np.asarray(picture(1, SIZE).convert("L"))
PHOTOGRAPH = saved(Image.fromarray(LEVELS), "PNG")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PyFuncModel:
    """A version whose probability of `bright` is the image's mean brightness."""
    folder = tmp_path_factory.mktemp("version")
    weights = np.array([[1, -1]] * 3, np.float32) / (3 * 255)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([0, 1], np.float32), "bias")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "network.onnx")
    classifier = {"labels": ["bright", "dark"], "color": "rgb", "side_pixels": SIDE, "reading": asdict(Reading())}
    (folder / "classifier.json").write_text(json.dumps(classifier))
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").touch()
    framework = next(iter(FRAMEWORKS.values()))
    mlflow.pyfunc.save_model(
        folder / "version",
        python_model=str(MODELS / "image_classifier.py"),
        artifacts={
            "model": str(folder / "model"),
            "onnx": str(folder / "network.onnx"),
            "decoding": str(copy_decoding(folder / "decoding")),
            "engines": str(MODELS / "engines.py"),
            "framework": str(framework.network_file),
            "classifier": str(folder / "classifier.json"),
        },
        model_config={"device": "cpu"},
        signature=classifier_signature(),
        pip_requirements=["mlflow"],
    )
    return mlflow.pyfunc.load_model(str(folder / "version"))


def brightness(version: PyFuncModel, **columns: list) -> list[float | None]:
    """The probability of `bright` of each row; None where the row has no answer."""
    answers = version.predict(pd.DataFrame({name: pd.Series(of, dtype=object) for name, of in columns.items()}))
    return [None if of is None else of[0] for of in answers["probabilities"]]


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


@pytest.mark.parametrize("images", [pd.DataFrame({"image": [PHOTOGRAPH]}), [PHOTOGRAPH], PHOTOGRAPH])
def test_a_frame_without_images_is_an_error_that_names_the_columns(version: PyFuncModel, images: object) -> None:
    with pytest.raises((ValueError, mlflow.MlflowException), match="(?s)content.*path"):
        version.predict(images)


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


@pytest.mark.parametrize("name", ["12 bit in 16.tif", "12 bit in 16.png", "photoshop lab.tif", "hot pixel uint32.tif"])
def test_a_reported_file_has_the_answer_of_the_reference(version: PyFuncModel, name: str) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no files in {CASES}")
    with Image.open(CASES / "reference.png") as image:
        reference = saved(image if name == "photoshop lab.tif" else image.convert("L"), "PNG")
    found, expected = brightness(version, content=[(CASES / name).read_bytes(), reference])
    assert found == pytest.approx(expected, abs=0.01)
