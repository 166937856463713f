from collections.abc import Callable
from typing import Literal
from unicodedata import normalize
from urllib.parse import parse_qsl

import pytest

from gallery.queries import read_choices, read_image, read_page
from image_assets.predictions.image_filters import SORTS, Filters, InvalidInput, Sort
from image_assets.predictions.image_index import Index
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, IMAGE_PREDICTIONS
from tests.gallery.conftest import SmallHome, small_home
from tests.gallery.small_home import Row, append, featured, landed, predicted
from tests.support.images import png


@pytest.mark.parametrize(
    ("parameters", "numbers"),
    [
        ({}, range(24)),
        ({"label": "roses"}, range(0, 24, 2)),
        ({"label": "Roses"}, []),
        ({"labelled": "none"}, []),
        ({"text": "PHOTOGRAPH 01"}, range(10, 20)),
        ({"text": "%"}, []),  # not a pattern
        ({"split": "test"}, [5, 11, 17, 23]),
        ({"split": "none"}, []),
        ({"answer": "mistakes", "version": "1"}, [1]),
        ({"answer": "mistakes"}, [1, 4]),  # of version 2, the newest
        ({"answer": "right", "split": "test"}, [5, 11, 17, 23]),
        ({"answer": "none", "version": "3"}, range(24)),
        ({"predicted": "tulips", "label": "roses"}, [4]),
        ({"apart": "versions"}, [4]),
        ({"apart": "frameworks"}, [4]),
        ({"apart": "1"}, [4]),
        ({"apart": "2"}, []),  # the version itself
        ({"least": "70", "most": "71"}, [20, 21]),
        ({"format": "PNG"}, range(24)),
        ({"format": "JPEG"}, []),
        ({"state": "missing"}, []),
    ],
)
def test_filters_select_images(index: Index, parameters: dict[str, str], numbers: list[int]) -> None:
    page = read_page(index, Filters.read(parameters))
    found = {int(image["path"][-6:-4]) for image in page.images}
    assert found == set(numbers)
    assert page.count == len(numbers)


ORDERS: dict[Sort, Callable[[Row], tuple]] = {
    "name": lambda row: (row["path"],),
    "newest": lambda row: (-row["modification_time"].timestamp(), row["path"]),
    "unsure": lambda row: (row["probability"], row["path"]),
    "sure": lambda row: (-row["probability"], row["path"]),
    "large": lambda row: (-row["width"] * row["height"], row["path"]),
    "small": lambda row: (row["width"] * row["height"], row["path"]),
    "label": lambda row: (row["label"], row["predicted"], row["path"]),
}


@pytest.fixture(scope="module")
def images_of_two_sizes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, list[Row]]:
    """The gallery's index of photographs and of two smaller ones, whose names are between theirs, and their rows."""
    home = small_home(tmp_path_factory.mktemp("sorted"))
    numbers = {"roses/photograph 003.png": 50, "tulips/photograph 002.png": 51}
    contents = {name: png(number, size=(20, 10)) for name, number in numbers.items()}
    files = [landed(home.landing, name, content, numbers[name]) for name, content in contents.items()]
    images = [featured(file, content, home.landing) for file, content in zip(files, contents.values(), strict=True)]
    append(home.delta_tables, IMAGE_FILES, files)
    append(home.delta_tables, FEATURED_IMAGES, images)
    new = [predicted(image, 2, "roses", share) for image, share in zip(images, (0.55, 0.65), strict=True)]
    append(home.delta_tables, IMAGE_PREDICTIONS, new)
    stored = home.delta_tables.read(IMAGE_PREDICTIONS, ["path", "model_version", "label", "probability"]).to_pylist()
    of_version_2 = {row["path"]: row for row in stored if row["model_version"] == 2}
    predictions = {
        path: {"predicted": row["label"], "probability": row["probability"]} for path, row in of_version_2.items()
    }
    return home.index(), [{**image, **predictions[image["path"]]} for image in [*home.images, *images]]


@pytest.mark.parametrize("sort", SORTS)
def test_images_are_sorted(images_of_two_sizes: tuple[Index, list[Row]], sort: Sort) -> None:
    index, images = images_of_two_sizes
    expected, by_name = ([image["path"] for image in sorted(images, key=ORDERS[order])] for order in (sort, "name"))
    assert [image["path"] for image in read_page(index, Filters(sort=sort)).images] == expected
    assert sort == "name" or expected != by_name


def test_a_label_may_be_a_space_and_other_filters_are_none_then() -> None:
    assert Filters.read({"label": " ", "least": " "}) == Filters(label=" ")


def test_positions_start_at_one(index: Index) -> None:
    assert read_page(index, Filters.read({})).first == 1
    assert read_page(index, Filters.read({"state": "missing"})).first == 0


@pytest.mark.parametrize(
    "parameters",
    [
        *({"version": value} for value in ("x", "0", "-1", "9" * 30)),
        *({"least": value} for value in ("x", "-1", "101", "nan")),
        {"sort": "name; DROP TABLE files"},
        {"state": "' OR 1=1"},
        {"page": "0"},
        {"apart": "1 OR 1"},
        {"text": "x" * 501},
        {"attribute": "part"},
    ],
    ids=str,
)
def test_an_invalid_filter_is_rejected_by_name(parameters: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match=f"^{next(iter(parameters))} is ['\"]"):
        Filters.read(parameters)


@pytest.mark.parametrize("text", ["café", "CAFÉ", "고양이"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_path_is_found_in_any_unicode_form(own_home: SmallHome, text: str, form: Literal["NFC", "NFD"]) -> None:
    files = [landed(own_home.landing, normalize(of, "roses/café 고양이.png"), png(70), 70) for of in ("NFC", "NFD")]
    append(own_home.delta_tables, IMAGE_FILES, files)
    assert read_page(own_home.index(), Filters(text=normalize(form, text))).count == 2


@pytest.mark.parametrize("name", ["label", "predicted", "reason", "format", "text"])
def test_texts_never_become_part_of_the_query(index: Index, name: str) -> None:
    assert read_page(index, Filters.read({name: "' OR '1' = '1"})).count == 0


def test_a_url_restores_its_filters() -> None:
    filters = Filters.read({"label": "a&b=c #1", "least": "12.5", "drift": "1", "sort": "sure", "page": "3"})
    assert Filters.read(dict(parse_qsl(filters.url(page=3).removeprefix("?")))) == filters
    assert "page" not in dict(parse_qsl(filters.url(label="")))
    assert Filters().url() == "?"


def test_urls_keep_the_names_that_people_have_bookmarked() -> None:
    filters = Filters(
        label_status="corrected",
        result="mistakes",
        disagreement="versions",
        min_percent=10,
        max_percent=99.5,
        outliers=True,
    )
    assert filters.url() == "?labelled=corrected&answer=mistakes&apart=versions&least=10&most=99.5&drift=1"


def test_every_active_filter_has_a_chip_that_removes_it() -> None:
    parameters = {
        "text": "a",
        "label": "roses",
        "labelled": "none",
        "predicted": "tulips",
        "version": "2",
        "answer": "fault",
        "apart": "1",
        "least": "10",
        "most": "90",
        "split": "none",
        "state": "missing",
        "reason": "empty",
        "format": "PNG",
        "attribute": "part=1",
        "drift": "1",
    }
    chips = Filters.read(parameters).chips()
    assert len(chips) == len(parameters)
    for _, address in chips:
        assert len(dict(parse_qsl(address.removeprefix("?")))) == len(parameters) - 1


def test_columns_of_a_label_table_filter_images(own_home: SmallHome) -> None:
    paths = [image["path"] for image in own_home.images]
    given = [
        {"path": paths[0], "state": "given", "label": "roses", "attributes": [("part", "a=b"), ("day", "Monday")]},
        {"path": paths[1], "state": "given", "label": "tulips", "attributes": [("part", "17")]},
        {"path": paths[2], "state": "given", "label": "roses"},
    ]
    append(own_home.delta_tables, GIVEN_LABELS, given)
    index = own_home.index()
    for attribute, expected in {"part=a=b": [0], " part = 17": [1], "part=": [], "day=Monday": [0], "x=y": []}.items():
        images = read_page(index, Filters.read({"attribute": attribute})).images
        assert [image["path"] for image in images] == [paths[number] for number in expected], attribute
    assert read_image(index, paths[0])["attributes"] == {"part": "a=b", "day": "Monday"}
    assert read_choices(index, None, "current")["attribute"] == [("day=Monday", 1), ("part=17", 1), ("part=a=b", 1)]
    assert read_choices(index, None, "current")["label"] == [("roses", 12), ("tulips", 12)]
