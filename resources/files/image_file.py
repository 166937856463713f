"""One image file as a listing finds it, and how the tables hold its name (runs in each executor)."""

import os
import re
from dataclasses import dataclass
from datetime import datetime

ESCAPED = re.compile("[%\n\r\udc80-\udcff]+")


@dataclass(frozen=True)
class ImageFile:
    """One file as a listing finds it; `regular` is false for links, pipes and devices."""

    path: str
    modification_time: datetime
    length: int
    regular: bool


def escaped(name: str) -> str:
    """A name as Python's file functions give it, with `%`, line breaks and bytes that are no UTF-8 as `%XX`."""
    if not ESCAPED.search(name):
        return name
    return ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found[0])), name)
