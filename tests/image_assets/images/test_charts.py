"""Pictures for people are of the promised kind, size and weight, whatever they show."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from image_assets.images.charts import confusion_matrix, distributions, learning_curves, picture_markdown
from image_assets.images.contact_sheets import contact_sheet

EPOCH = {"epoch": 1.0, "loss": 1.2, "accuracy": 0.5, "validation_loss": 1.4, "validation_accuracy": 0.4}


def jpeg(seed: int, size: tuple[int, int] = (150, 100)) -> bytes:
    content = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size).save(content, "JPEG")
    return content.getvalue()


def opened(picture: bytes) -> Image.Image:
    return Image.open(BytesIO(picture))


@pytest.mark.parametrize(
    ("picture", "mime_type"),
    [
        (jpeg(0), "image/jpeg"),
        (learning_curves([EPOCH]), "image/png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    ],
)
def test_markdown_holds_the_whole_picture(picture: bytes, mime_type: str) -> None:
    markdown = picture_markdown(picture, "A sample")
    start, data = markdown.removesuffix(")").split(";base64,")
    assert start == f"A sample\n\n![A sample](data:{mime_type}"
    assert b64decode(data) == picture


def test_a_caption_cannot_break_the_markdown() -> None:
    assert picture_markdown(jpeg(0), "a_b](x)\n# c").startswith("a\\_b\\](x) \\# c\n\n![a\\_b\\](x) \\# c](data:")


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="expected JPEG, PNG or SVG"):
        picture_markdown(b"GIF89a", "a picture")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 60])
def test_a_contact_sheet_of_any_length_is_a_small_jpeg(count: int) -> None:
    sheet = contact_sheet([(jpeg(number), f"roses/{number:012}.jpg") for number in range(count)])
    assert opened(sheet).format == "JPEG"
    assert opened(sheet).width < 1000
    assert len(sheet) <= 100_000


def test_each_image_stands_in_its_place_above_its_caption() -> None:
    red, blue = BytesIO(), BytesIO()
    Image.new("RGB", (100, 100), (255, 0, 0)).save(red, "PNG")
    Image.new("RGB", (100, 100), (0, 0, 255)).save(blue, "PNG")
    sheet = opened(contact_sheet([(red.getvalue(), ""), (blue.getvalue(), "daisy")], side_pixels=100, columns=2))
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert np.abs(pixels[58, 58] - (255, 0, 0)).max() < 30
    assert np.abs(pixels[58, 166] - (0, 0, 255)).max() < 30
    assert pixels[115:, :108].min() > 200  # no caption
    assert pixels[115:, 116:].min() < 150  # a caption


def test_images_that_cannot_be_decoded_are_gray_boxes() -> None:
    sheet = opened(contact_sheet([(b"no image", "broken.jpg"), (jpeg(1)[:400], "half.jpg")]))
    assert np.abs(np.asarray(sheet.convert("RGB")).astype(int)[20, 20] - 0xDD).max() < 12


@pytest.mark.parametrize("caption", ["", "a" * 300, "word " * 80, "first\nsecond\nthird", "ромашка 雛菊 🌼", "/"])
def test_any_caption_fits(caption: str) -> None:
    assert opened(contact_sheet([(jpeg(0), caption)])).size == opened(contact_sheet([(jpeg(0), "a")])).size


@pytest.mark.parametrize(
    "history",
    [
        [],
        [EPOCH],
        [EPOCH | {"epoch": float(epoch)} for epoch in range(1, 101)],
        [EPOCH | {"loss": float("nan")}],
        [{"epoch": 1.0, "loss": 1.0, "accuracy": 0.5}],
    ],
    ids=["no epoch", "one", "a hundred", "not a number", "without validation"],
)
def test_learning_curves_are_a_png_that_fits(history: list[dict[str, float]]) -> None:
    curves = learning_curves(history)
    assert opened(curves).format == "PNG"
    assert opened(curves).width < 1000
    assert len(curves) <= 100_000


@pytest.mark.parametrize("labels", [1, 2, 5, 20, 60])
def test_a_confusion_matrix_of_any_size_is_a_png_that_fits(labels: int) -> None:
    counts = np.random.default_rng(labels).poisson(3, (labels, labels))
    matrix = confusion_matrix(counts.tolist(), [f"a long name of label {number}" for number in range(labels)])
    assert opened(matrix).format == "PNG"
    assert max(opened(matrix).size) < 1000
    assert len(matrix) <= 100_000


def test_labels_without_images_and_math_in_names_can_be_drawn() -> None:
    assert opened(confusion_matrix([[0, 0], [0, 3]], ["$x_{$", "b"])).format == "PNG"


@pytest.mark.parametrize("labels", [0, 1, 5, 200])
def test_distributions_of_any_number_of_labels_are_a_png_that_fits(labels: int) -> None:
    counts = {f"a long name of $label {number}": 1 + number**2 for number in range(labels)}
    sizes = {(2.0**width, 2.0**height): width for width in range(5, 14) for height in range(5, 14)}
    picture = distributions(
        labels=counts,
        formats={"JPEG": 3} if labels else {},
        sizes=sizes if labels else {},
        lengths={2.0**power: power for power in range(10, 28)} if labels else {},
    )
    assert opened(picture).format == "PNG"
    assert opened(picture).width < 1000
    assert len(picture) <= 100_000
