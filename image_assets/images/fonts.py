"""Fonts for names in pictures: DejaVu Sans and, for characters that it lacks, other installed fonts."""

import logging
import unicodedata
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import distribution
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

logger = logging.getLogger(__name__)
NOT_LATIN = 0x250  # DejaVu Sans has every character before this one
INVISIBLE = {"Cc", "Cf", "Zs"}  # categories of characters without a glyph
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")  # in characters' names
REGIONS = {"HIRAGANA": "JP", "KATAKANA": "JP", "HANGUL": "KR"}  # whose forms of Chinese characters go with these
LISTED_CHARACTERS = 20
_reported: set[str] = set()  # characters that no font has


class Font(NamedTuple):
    """A font: its family, its file, and its number in that file."""

    family: str
    path: str
    face: int = 0


@cache
def dejavu_sans() -> Font:
    """The font that matplotlib brings along, located without the import of matplotlib, which is slow."""
    file = distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
    return Font("DejaVu Sans", str(file))


def fonts_for(text: str) -> tuple[Font, ...]:
    """DejaVu Sans and the installed fonts with the characters that it lacks; warns of those that no font has."""
    characters = frozenset(
        character
        for character in text
        if ord(character) >= NOT_LATIN and unicodedata.category(character) not in INVISIBLE
    )
    missing = lacking(dejavu_sans(), characters) if characters else characters
    if not missing:
        return (dejavu_sans(),)
    from matplotlib.font_manager import findSystemFonts

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns of fonts without the weight 400
    fonts, without = _others(missing, frozenset(findSystemFonts()))
    if new := sorted(without - _reported):
        _reported.update(new)
        logger.warning(
            "Names in pictures have boxes instead of %s: no installed font has %s. Install one, on Debian and Ubuntu "
            "with `apt-get install %s`.",
            "".join(new[:LISTED_CHARACTERS]) + "…" * (len(new) > LISTED_CHARACTERS),
            "them" if len(new) > 1 else "it",
            " ".join(sorted({package_with(character) for character in new})),
        )
    return (dejavu_sans(), *fonts)


@lru_cache(maxsize=32)
def _others(missing: frozenset[str], files: frozenset[str]) -> tuple[tuple[Font, ...], frozenset[str]]:
    """As few of the fonts in files as possible that have these characters, and the characters that none has."""
    names = " ".join(unicodedata.name(character, "") for character in missing)
    region = next((region for script, region in REGIONS.items() if script in names), "SC")
    candidates = [(font, lacking(font, missing)) for font in installed(files, region)]
    fonts: list[Font] = []
    while missing and candidates:
        font, without = min(candidates, key=lambda candidate: len(missing & candidate[1]))  # the first of equal ones
        if missing <= without:
            break
        fonts.append(font)
        missing &= without
    return (*fonts,), missing


def installed(files: frozenset[str], region: str) -> list[Font]:
    """The fonts in files, plain sans-serif ones first, and of these the one for a region, such as "JP"."""
    from matplotlib.font_manager import fontManager, weight_dict

    # Matplotlib stores its list, and does not notice a font that is installed later.
    for path in sorted(files - {entry.fname for entry in fontManager.ttflist}):
        with suppress(OSError, RuntimeError, ValueError, KeyError):  # damaged, or of a kind that it does not draw
            fontManager.addfont(path)

    def rank(entry: "FontEntry") -> tuple:
        weight = weight_dict[entry.weight] if isinstance(entry.weight, str) else entry.weight
        other = "Serif" in entry.name or "Mono" in entry.name
        plain = (entry.style != "normal", other, "Sans" not in entry.name, abs(weight - 400))
        return *plain, not entry.name.endswith(region), entry.name

    entries = sorted((entry for entry in fontManager.ttflist if entry.fname in files), key=rank)
    return [Font(entry.name, entry.fname, entry.index) for entry in entries]


def package_with(character: str) -> str:
    """The package of Debian with a font that has the character."""
    if any(word in unicodedata.name(character, "") for word in CJK):
        return "fonts-noto-cjk"
    return "fonts-noto-core" if unicodedata.category(character)[0] in "LMN" else "fonts-symbola"


def lacking(font: Font, characters: frozenset[str]) -> frozenset[str]:
    """Those of the characters that the font lacks: all of them if it cannot be opened."""
    from matplotlib.font_manager import FontPath, get_font

    try:
        opened = get_font(FontPath(font.path, font.face))
    except (OSError, RuntimeError):
        return characters
    return frozenset(character for character in characters if not opened.get_char_index(ord(character)))
