"""The paths of a label table find their files as other systems write them, and are never guessed."""

from unicodedata import normalize

import pytest

from image_assets.data.label_paths import match_names, to_table_path

LANDING = "file:/data/photos"
CAFE = normalize("NFC", "café")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("roses/a b.png", "file:/data/photos/roses/a b.png"),
        ("./roses//a.png", "file:/data/photos/roses/a.png"),
        ("100%.png", "file:/data/photos/100%25.png"),
        ("/data/photos/100%.png", "file:/data/photos/100%25.png"),
        ("file:/data/photos/100%25.png", "file:/data/photos/100%25.png"),
        ("file:///data/photos/a.png", "file:/data/photos/a.png"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("", ""),
    ],
)
def test_a_file_is_named_below_the_folder_in_full_or_as_tables_do(name: str, path: str) -> None:
    assert to_table_path(name, LANDING) == path


FILES = ["roses/a.jpg", "roses/B c.JPG", "tulips/b.png", "tulips/100%25.jpg", "top.jpg", "2024/roses/v1.2.jpeg"]


@pytest.mark.parametrize(
    ("name", "file", "kinds"),
    [
        ("roses/a.jpg", "roses/a.jpg", ()),
        ("./roses//a.jpg", "roses/a.jpg", ()),
        ("roses\\a.jpg", "roses/a.jpg", ("backslashes",)),
        (".\\roses\\a.jpg", "roses/a.jpg", ("backslashes",)),
        ("C:\\Users\\ada\\photos\\roses\\a.jpg", "roses/a.jpg", ("backslashes", "leading_folders")),
        ("C:/x/top.jpg", "top.jpg", ("leading_folders",)),
        ("\\\\server\\share\\roses\\a.jpg", "roses/a.jpg", ("backslashes", "leading_folders")),
        ("/home/ada/set/roses/a.jpg", "roses/a.jpg", ("leading_folders",)),
        ("/roses/a.jpg", "roses/a.jpg", ("leading_folders",)),
        ("photos/roses/a.jpg", "roses/a.jpg", ("leading_folders",)),
        ("data/photos/roses/a.jpg", "roses/a.jpg", ("leading_folders",)),
        ("https://host/x/roses/a.jpg?key=1", "roses/a.jpg", ("leading_folders",)),
        ("https://host/tulips/100%25.jpg", "tulips/100%25.jpg", ("leading_folders",)),
        ("tulips/100%.JPG", "tulips/100%25.jpg", ("case",)),
        ("roses/a.JPG", "roses/a.jpg", ("case",)),
        ("Roses/A.jpg", "roses/a.jpg", ("case",)),
        ("roses/a", "roses/a.jpg", ("no_suffix",)),
        ("roses/b C", "roses/B c.JPG", ("case", "no_suffix")),
        ("a.jpg", "roses/a.jpg", ("no_folder",)),
        ("v1.2", "2024/roses/v1.2.jpeg", ("no_suffix", "no_folder")),
        ("roses/v1.2.jpeg", "2024/roses/v1.2.jpeg", ("no_folder",)),
        ("/data/local-files/?d=photos/roses/B%20c.JPG", "roses/B c.JPG", ("label_studio", "leading_folders")),
        ("http://host:8080/data/local-files/?d=roses%2Fa.jpg", "roses/a.jpg", ("label_studio",)),
        ("/data/upload/3/0a1b2c3d-a.jpg", "roses/a.jpg", ("label_studio", "no_folder")),
        # Nothing is similar.
        ("daisy/a.jpg", None, ()),
        ("x/top.jpg", None, ()),
        ("/data/photos/a.jpg", None, ()),
        ("C:/x/tulips/a.jpg", None, ()),
        ("roses/a.png", None, ()),
        ("oses/a.jpg", None, ()),
        ("jpg", None, ()),
        (".", None, ()),
        ("..", None, ()),
        ("/", None, ()),
        ("\\", None, ()),
        ("s3://", None, ()),
        ("http://[a/b", None, ()),
        ("/data/local-files/?d=", None, ()),
    ],
)
def test_a_path_finds_the_file_that_it_means(name: str, file: str | None, kinds: tuple[str, ...]) -> None:
    match = match_names([(name, "")], {f"{LANDING}/{file}" for file in FILES}, LANDING)[name, ""]
    assert match.paths == ((f"{LANDING}/{file}",) if file else (to_table_path(name, LANDING),))
    assert match.kinds == kinds


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_both_unicode_forms_are_the_same_name(form: str, written: str) -> None:
    file, name = normalize(form, f"{CAFE}/ü.jpg"), normalize(written, f"{CAFE}/ü.jpg")
    match = match_names([(name, "")], {f"{LANDING}/{file}"}, LANDING)[name, ""]
    assert match.paths == (f"{LANDING}/{file}",)
    assert match.kinds == (() if form == written else ("unicode_form",))


@pytest.mark.parametrize(
    ("name", "files", "paths"),
    [
        ("a.JPG", ["a.jpg", "x/a.JPG"], ["a.jpg"]),  # the most similar one
        ("a", ["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        ("A.jpg", ["a.jpg", "a.JPG"], ["a.JPG", "a.jpg"]),
        ("a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg", "y/a.jpg"]),
        (CAFE, [normalize("NFD", CAFE) + ".jpg", CAFE + ".jpg"], [CAFE + ".jpg"]),
    ],
)
def test_several_files_are_all_named_unless_one_is_more_similar(name: str, files: list[str], paths: list[str]) -> None:
    match = match_names([(name, "")], {f"{LANDING}/{file}" for file in files}, LANDING)[name, ""]
    assert [*match.paths] == [f"{LANDING}/{path}" for path in paths]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (f"file://{LANDING.removeprefix('file:')}/day%201/b.png", "day 1/b.png"),
        ("day%201/b.png", "day 1/b.png"),
        ("dbfs:/photos/day%201/b.png", "day 1/b.png"),
    ],
)
def test_a_path_of_an_address_is_decoded(name: str, file: str) -> None:
    match = match_names([(name, "")], {f"{LANDING}/{file}"}, LANDING)[name, ""]
    assert match.paths == (f"{LANDING}/{file}",)
    assert match.kinds[0] == "percent_encoding"


def test_a_path_relative_to_the_tables_folder_may_leave_it() -> None:
    assert match_names([("../a.jpg", "train")], {f"{LANDING}/a.jpg"}, LANDING)["../a.jpg", "train"].paths == (
        f"{LANDING}/a.jpg",
    )


@pytest.mark.parametrize("written", ["d{}\\image.jpg", "X:/old/d{}/image.jpg", "d{}/image", "D{}/image.jpg"])
def test_many_files_of_the_same_name_are_told_apart_by_their_folders(written: str) -> None:
    numbers = range(5000)
    files = {f"{LANDING}/{'s/' if 'X:' not in written else ''}d{number}/image.jpg" for number in numbers}
    matches = match_names(((written.format(number), "") for number in numbers), files, LANDING)
    found = {path for match in matches.values() for path in match.paths if len(match.paths) == 1}
    assert found == files


def test_a_file_that_a_row_names_exactly_is_not_that_of_another_row() -> None:
    matches = match_names([("a.jpg", ""), ("A.jpg", "")], {f"{LANDING}/a.jpg"}, LANDING)
    assert matches["a.jpg", ""].paths == (f"{LANDING}/a.jpg",)
    assert matches["A.jpg", ""].paths == (f"{LANDING}/A.jpg",)


def test_paths_may_be_relative_to_the_tables_own_folder() -> None:
    files = {f"{LANDING}/{folder}/a.jpg" for folder in ("train", "test")}
    matches = match_names([("a.jpg", "train"), ("a.jpg", "test")], files, LANDING)
    assert {name[1]: match.paths for name, match in matches.items()} == {
        folder: (f"{LANDING}/{folder}/a.jpg",) for folder in ("train", "test")
    }


def test_a_landing_folder_on_s3_is_matched_the_same_way() -> None:
    landing = "s3://bucket/photos"
    for name in ("roses\\A.jpg", "s3://bucket/photos/roses/A.jpg", "bucket/photos/roses/a.jpg", "/x/roses/a.jpg"):
        match = match_names([(name, "")], {f"{landing}/roses/a.jpg"}, landing)[name, ""]
        assert match.paths == (f"{landing}/roses/a.jpg",), name
