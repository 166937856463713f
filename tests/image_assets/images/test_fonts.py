"""Names in pictures are drawn with fonts that have their characters, or what is missing is said once."""

import shutil
import subprocess
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

from image_assets.images.charts import confusion_matrix
from image_assets.images.contact_sheets import contact_sheet
from image_assets.images.fonts import Font, dejavu_sans, fonts_for, installed, lacking

FLOWER, GRASS = "\N{CJK UNIFIED IDEOGRAPH-82B1}", "\N{CJK UNIFIED IDEOGRAPH-8349}"
UNASSIGNED = "\u0378"  # no font has it


def test_names_that_dejavu_sans_has_need_no_other_font(caplog: pytest.LogCaptureFixture) -> None:
    assert fonts_for("rosé\n\u200b ρόδο роза ورد …") == (dejavu_sans(),)
    assert not caplog.messages


def test_characters_that_no_font_has_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    assert fonts_for(f"roses {UNASSIGNED}") == fonts_for(f"{UNASSIGNED} tulips") == (dejavu_sans(),)
    (message,) = caplog.messages
    assert f"boxes instead of {UNASSIGNED}: no installed font has it" in message
    assert message.endswith("`apt-get install fonts-symbola`.")


def test_a_font_that_matplotlib_has_not_listed_is_found_and_a_damaged_one_left_out(tmp_path: Path) -> None:
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 500)), (pen.lineTo, (500, 0))):
        move(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "flower"])
    builder.setupCharacterMap({ord(UNASSIGNED): "flower"})
    builder.setupGlyf(dict.fromkeys([".notdef", "flower"], pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "flower"], (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Flowers of this test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "flowers.ttf")
    (tmp_path / "damaged.ttf").write_bytes((tmp_path / "flowers.ttf").read_bytes()[:300])
    files = frozenset(str(path) for path in tmp_path.iterdir())
    (font,) = installed(files, "SC")
    assert font == Font("Flowers of this test", str(tmp_path / "flowers.ttf"))
    assert lacking(font, frozenset({UNASSIGNED, FLOWER})) == {FLOWER}


def test_chinese_names_are_drawn_in_charts_and_contact_sheets(caplog: pytest.LogCaptureFixture) -> None:
    command = ["fc-list", f":charset={ord(FLOWER):x} {ord(GRASS):x}", "family"]
    if not shutil.which("fc-list") or not subprocess.run(command, capture_output=True, check=True).stdout:
        pytest.skip("no font with Chinese characters is installed, such as fonts-noto-cjk")
    dejavu, font = fonts_for(f"{FLOWER} {GRASS}")
    assert dejavu == dejavu_sans()
    characters = TTFont(font.path, fontNumber=font.face, lazy=True).getBestCmap() or {}
    assert {ord(FLOWER), ord(GRASS)} <= characters.keys()
    # Boxes are the same for both.
    assert confusion_matrix([[1]], [FLOWER]) != confusion_matrix([[1]], [GRASS])
    assert contact_sheet([(b"", FLOWER)]) != contact_sheet([(b"", GRASS)])
    assert not caplog.messages
