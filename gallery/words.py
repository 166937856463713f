"""Values as pages show them."""

from collections.abc import Callable
from datetime import datetime
from urllib.parse import unquote

UNITS = ("bytes", "KB", "MB", "GB")


def file_name(path: str) -> str:
    """A path's last part, as the file is called."""
    return unquote(path.rpartition("/")[2])


def percent(share: float | None) -> str:
    """A share in whole percents; one that is no whole, or not nothing, never looks as if it were."""
    if share is None:
        return "–"
    return f"{min(99, max(1, round(100 * share))) if 0 < share < 1 else round(100 * share)} %"


def size(length: int | None) -> str:
    """A number of bytes in the unit that reads best."""
    if length is None:
        return "–"
    number, unit = float(length), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}" if unit else f"{length} bytes"


def moment(time: datetime | None) -> str:
    """A time of this machine's clock, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}" if time else "–"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


WORDS: dict[str, Callable[..., str]] = {
    "file_name": file_name,
    "percent": percent,
    "size": size,
    "moment": moment,
    "count": count,
}
