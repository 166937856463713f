"""What a version's prediction depends on is found by covering parts of the image, whatever the version computes."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.models.explanations import NotExplained, explained_tiles, explaining, explanations_sheet, with_heat
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion
from tests.support.image_files import saved
from tests.support.registered_versions import REDNESS, saved_model

LABELS = ["red", "other"]
WHITE = saved(Image.new("RGB", (8, 8), "white"), "PNG")


@pytest.fixture(scope="module")
def redness(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    model = saved_model(REDNESS.format(labels=LABELS), tmp_path_factory.mktemp("redness"), "model")
    return ModelVersion(7, "None", (), "", model.as_uri(), {"labels": json.dumps(LABELS), FILES_DIGEST: "known"})


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def green_with_red(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    """A green photograph with a red part: left, top, right, bottom."""
    pixels = np.full((height, width, 3), (40, 120, 40), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (220, 20, 20)
    return saved(Image.fromarray(pixels), "PNG")


def test_the_parts_that_raise_the_probability_are_red_and_no_others(
    redness: ModelVersion, registry: ModelRegistry
) -> None:
    content = green_with_red(800, 400, (0, 0, 200, 200))
    with explaining(redness, registry) as explain:
        red, other = explain(content, LABELS)
    assert (red.label, red.probability) == ("red", pytest.approx(1 / 8, abs=0.01))
    assert red.lowest < 0.07
    assert other.probability == pytest.approx(7 / 8, abs=0.01)
    rows, columns = np.nonzero(red.heat > red.heat.max() / 10)
    assert (rows.max() / len(red.heat), columns.max() / len(red.heat)) <= (0.6, 0.35)

    ((picture, caption),) = explained_tiles(content, [red])
    shown = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    assert shown.shape == (112, 224, 3)
    assert shown[20, 20, 0] - shown[20, 20, 1] > 80
    assert abs(shown[90, 200, 0] - shown[90, 200, 1]) < 20, "gray where nothing depends on it"
    assert caption.startswith("red 12%\n")


@pytest.mark.parametrize(("page", "red_share"), [("first", 0), ("non_blank", 1 / 8)])
def test_the_page_is_explained_that_the_version_reads(
    redness: ModelVersion, registry: ModelRegistry, page: str, red_share: float
) -> None:
    blank, second = Image.new("RGB", (800, 400)), Image.open(BytesIO(green_with_red(800, 400, (0, 0, 200, 200))))
    second.paste("black", (700, 300, 800, 400))  # the red is as bright as the green
    content = saved(blank, "TIFF", save_all=True, append_images=[second])
    version = replace(
        redness, tags={**redness.tags, "cache_settings": json.dumps({"page": page, "pixel_limit": 10_000})}
    )
    with explaining(version, registry) as explain:
        (red,) = explain(content, ["red"])
    assert red.probability == pytest.approx(red_share, abs=0.01)


@pytest.mark.parametrize(
    ("content", "labels", "reason"),
    [
        (b"no image", ["red"], "not an image|recogni[sz]e|cannot"),
        (green_with_red(8, 8, (0, 0, 4, 4)), ["blue"], "version 7 does not know blue"),
        (WHITE, ["red"], "version 7 failed: raised: ValueError: white"),
    ],
    ids=["unreadable", "unknown label", "failing version"],
)
def test_there_is_a_reason_if_there_is_no_explanation(
    redness: ModelVersion, registry: ModelRegistry, content: bytes, labels: list[str], reason: str
) -> None:
    with explaining(redness, registry) as explain, pytest.raises(NotExplained, match=reason):
        explain(content, labels)


def test_a_version_that_cannot_be_loaded_is_a_reason_too(registry: ModelRegistry, tmp_path: Path) -> None:
    gone = ModelVersion(8, "None", (), "", (tmp_path / "nowhere").as_uri(), {"labels": json.dumps(LABELS)})
    with explaining(gone, registry) as explain, pytest.raises(NotExplained, match="cannot be loaded"):
        explain(green_with_red(8, 8, (0, 0, 4, 4)), ["red"])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"backbone_name": "onnx:/moved/away.onnx"}, "/moved/away.onnx, which is not a file"),
        ({"backbone_name": "somebody's own"}, 'backbone is "somebody\'s own": expected one of'),
        ({"cache_settings": "as usual"}, "the tag cache_settings is 'as usual', which is invalid"),
        ({"cache_settings": '{"page": "the best"}'}, "cache_settings .*'non_blank' or 'first'"),
    ],
)
def test_tags_that_do_not_say_what_the_version_takes_are_a_reason_too(
    redness: ModelVersion, registry: ModelRegistry, tags: dict[str, str], reason: str
) -> None:
    version = replace(redness, tags=redness.tags | tags)
    with explaining(version, registry) as explain, pytest.raises(NotExplained, match=f"(?s){reason}"):
        explain(green_with_red(8, 8, (0, 0, 4, 4)), ["red"])


def test_the_recorded_size_of_images_is_enough_when_the_backbone_is_gone(
    redness: ModelVersion, registry: ModelRegistry
) -> None:
    settings = {"page": "first", "pixel_limit": 10_000, "side_pixels": 32, "content": "pixels", "color": "rgb"}
    tags = {"backbone_name": "onnx:/moved/away.onnx", "cache_settings": json.dumps(settings)}
    with explaining(replace(redness, tags=redness.tags | tags), registry) as explain:
        (red,) = explain(green_with_red(64, 64, (0, 0, 32, 64)), ["red"])
    assert red.probability == pytest.approx(1 / 2, abs=0.05)


def test_the_sheet_of_mistakes_shows_what_cannot_be_explained_as_well(
    redness: ModelVersion, registry: ModelRegistry
) -> None:
    mistakes = pd.DataFrame(
        {
            "content": [green_with_red(64, 64, (0, 0, 32, 32)), b"", green_with_red(64, 64, (0, 0, 60, 60))],
            "label": ["other", "red", None],
            "true_label": ["red", "of a label that the version does not know", "red"],
        }
    )
    sheet = Image.open(BytesIO(explanations_sheet(redness, mistakes, registry)))
    nothing = Image.open(BytesIO(explanations_sheet(redness, mistakes.head(0), registry)))
    assert sheet.format == nothing.format == "JPEG"
    assert sheet.width > nothing.width


def test_without_heat_a_photograph_is_gray() -> None:
    shown = np.asarray(Image.open(BytesIO(with_heat(green_with_red(32, 32, (0, 0, 9, 9)), np.zeros((7, 7))))))
    assert int(np.ptp(shown, axis=2).max()) < 12
