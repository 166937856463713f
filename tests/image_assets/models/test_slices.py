"""The worst slices are those that are surely bad, not those that are small."""

import pandas as pd
import pytest

from image_assets.models.evaluation import Slice, interval, mark_right, size_class, with_traits, worst_slices


def images(folder: str, right: int, wrong: int, *, side: int = 300, image_format: str | None = "JPEG") -> pd.DataFrame:
    """Judged answers on the images of a folder, and the images' features."""
    names = [f"file:/landing/{folder}/{number}.jpg" for number in range(right + wrong)]
    columns = {"path": names, "image_id": names, "width": side, "height": side, "format": image_format}
    predicted = ["daisy"] * right + ["roses"] * wrong
    return mark_right(pd.DataFrame(columns).assign(true_label="daisy", label=predicted, probability=0.9))


def slices_of(*folders: pd.DataFrame) -> list[Slice]:
    everything = pd.concat(folders, ignore_index=True)
    answers = everything.drop(columns=["width", "height", "format"])
    return worst_slices(with_traits(answers, everything))


@pytest.mark.parametrize(
    ("pixels", "expected"), [(1, "1 to 1 pixels"), (255, "128 to 255 pixels"), (256, "256 to 511 pixels")]
)
def test_sizes_are_told_apart_by_doublings(pixels: int, expected: str) -> None:
    assert size_class(pixels) == expected


def test_the_slice_that_can_least_be_good_comes_first() -> None:
    found = slices_of(images("few", 4, 8), images("many", 50, 50), images("good", 95, 5))
    assert [one.value for one in found] == ["file:/landing/many", "file:/landing/few", "file:/landing/good"]
    assert found[0] == Slice("folder", "file:/landing/many", 100, 0.5, *interval(50, 100))
    assert found[1].accuracy < found[0].accuracy


def test_slices_of_few_images_are_noise() -> None:
    assert [one.value for one in slices_of(images("nine", 0, 9), images("ten", 5, 5))] == ["file:/landing/ten"]


def test_a_trait_that_all_images_share_makes_no_slice() -> None:
    assert slices_of(images("one", 10, 10)) == []


def test_size_and_format_make_slices_and_images_without_them_make_none() -> None:
    found = slices_of(
        images("a", 10, 10, side=40), images("a/b", 20, 0, image_format="PNG"), images("c", 0, 20, image_format=None)
    )
    assert {(one.by, one.value) for one in found} == {
        *((by, value) for by in ("width", "height") for value in ("32 to 63 pixels", "256 to 511 pixels")),
        *(("format", value) for value in ("JPEG", "PNG")),
        *(("folder", f"file:/landing/{folder}") for folder in ("a", "a/b", "c")),
    }
    assert {one.value: one.accuracy for one in found if one.by == "format"} == {"JPEG": 0.5, "PNG": 1.0}


def test_the_worst_ten_are_listed() -> None:
    found = slices_of(*(images(str(number), 10 + number, 10) for number in range(15)))
    assert [one.images for one in found] == list(range(20, 30))
