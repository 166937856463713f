"""Names of exported files: safe on every system, and unique."""

import pytest

from image_assets.jobs.dataset_formats import FileNames, safe_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("roses/a b.png", "a b.png"),
        ("roses/rosé.png", "rosé.png"),
        ("roses/what?.png", "what_.png"),
        ("roses/a:b|c.png", "a_b_c.png"),
        ("roses/..png", "_..png"),
        ("roses/.png", "_.png"),
        ("roses/CON.png", "_CON.png"),
        ("roses/a.png ", "a.png"),
        ("roses/line\nbreak.png", "line_break.png"),
        (f"roses/{'é' * 200}.png", f"{'é' * 100}.png"),
    ],
)
def test_a_file_name_is_safe_on_every_system(path: str, name: str) -> None:
    assert safe_name(path) == name


def test_file_names_are_unique_on_systems_that_ignore_capital_letters() -> None:
    names = FileNames()
    found = [names.unique("train/", path, "abcdef" * 10) for path in ("x/a.png", "y/A.png", "a.png")]
    assert found == ["train/a.png", "train/A-abcdefab.png", "train/a-abcdefab-2.png"]
