"""Charts have the right kind and size whatever they show, and count everything once."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_assets.images.charts import (
    SHOWN_PARTS,
    by_label,
    confusion_matrix,
    distributions,
    largest,
    learning_curves,
    of_labels,
    picture_markdown,
    stacked_bars,
)
from tests.support.images import noise_jpeg, opened

EPOCH = {"epoch": 1.0, "loss": 1.2, "accuracy": 0.5, "validation_loss": 1.4, "validation_accuracy": 0.4}


@pytest.mark.parametrize(
    ("picture", "mime_type"),
    [
        (noise_jpeg(0), "image/jpeg"),
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
    assert picture_markdown(noise_jpeg(0), "a_b](x)\n# c").startswith("a\\_b\\](x) \\# c\n\n![a\\_b\\](x) \\# c](data:")


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="expected JPEG, PNG or SVG"):
        picture_markdown(b"GIF89a", "a picture")


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


def test_the_parts_of_a_training_are_drawn_one_after_another() -> None:
    parts = [EPOCH, *(EPOCH | {"epoch": float(epoch)} for epoch in range(1, 4))]
    in_one = [EPOCH | {"epoch": float(epoch)} for epoch in range(1, 5)]
    assert learning_curves(parts) != learning_curves(parts[1:]), "not over each other"
    assert learning_curves(parts) != learning_curves(in_one), "with a line between them"


@pytest.mark.parametrize("labels", [1, 2, 5, 20, 60])
def test_a_confusion_matrix_of_any_size_is_a_png_that_fits(labels: int) -> None:
    counts = np.random.default_rng(labels).poisson(3, (labels, labels))
    matrix = confusion_matrix(counts.tolist(), [f"a long name of label {number}" for number in range(labels)])
    assert opened(matrix).format == "PNG"
    assert max(opened(matrix).size) < 1000
    assert len(matrix) <= 100_000


def test_a_confusion_matrix_of_many_labels_has_the_names_that_fit() -> None:
    labels, counts = [str(number) for number in range(101)], np.eye(101, dtype=int).tolist()
    assert confusion_matrix(counts, labels) == confusion_matrix(counts, [labels[0], "another", *labels[2:]])


@pytest.mark.filterwarnings("error")
def test_labels_without_images_math_in_names_and_letters_without_a_glyph_can_be_drawn() -> None:
    assert opened(confusion_matrix([[0, 0], [0, 3]], ["$x_{$", "\N{CJK UNIFIED IDEOGRAPH-82B1}"])).format == "PNG"


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


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (14, 9), (200, 40)])
def test_bars_are_a_small_picture(rows: int, columns: int) -> None:
    counts = np.random.default_rng(1).integers(0, 50, (rows, columns))
    parts = pd.DataFrame(
        counts, [f"label ${row}$" for row in range(rows)], [f"a long name {n}" for n in range(columns)]
    )
    picture = stacked_bars(parts, "a title")
    assert Image.open(BytesIO(picture)).size == (900, 360)
    assert len(picture) < 100_000


def test_the_largest_parts_keep_their_order_and_the_rest_is_one() -> None:
    parts = pd.DataFrame([[number] for number in range(1, 13)], [f"label {number}" for number in range(1, 13)]).T
    found = largest(parts)
    assert [name for name, _ in found] == [*(f"label {number}" for number in range(4, 13)), "others"]
    assert found[-1][1] == [1 + 2 + 3]
    assert len(found) == SHOWN_PARTS + 1


def test_names_that_are_cut_to_the_same_stay_apart() -> None:
    parts = pd.DataFrame([[1, 2]], columns=["a very long label of roses", "a very long label of tulips"])
    assert [values for _, values in largest(parts)] == [[1], [2]]


def test_rows_are_counted_by_label_and_part_the_most_frequent_first() -> None:
    rows = pd.DataFrame({"label": ["a", "b", "b", None], "split": ["test", "test", "training", "test"]})
    counts = by_label(rows, "split", ["training", "validation", "test"])
    assert counts.index.tolist() == ["b", "a"]
    assert counts.to_numpy().tolist() == [[1, 0, 1], [0, 0, 1]]


def test_a_chart_of_many_labels_says_how_many_it_shows() -> None:
    assert of_labels("images", 60) == "images"
    assert of_labels("images", 1000) == "images: the 60 most frequent of 1,000 labels"
    labels = [str(number) for number in range(61)]
    assert len(by_label(pd.DataFrame({"label": labels, "split": "test"}), "split", ["test"])) == 60
