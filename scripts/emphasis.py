"""What matters stands out on a terminal, by weight and color; what is piped, and who set NO_COLOR, gets plain text."""

import os
import sys
from typing import Literal, TextIO

Look = Literal["strong", "good", "warning", "bad"]
CODES: dict[Look, str] = {"strong": "1", "good": "32", "warning": "33", "bad": "1;31"}


def emphasized(text: str, look: Look, on: TextIO | None = None) -> str:
    """The text as it stands out where it is printed, by default on stdout."""
    target = on or sys.stdout
    if not target.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{CODES[look]}m{text}\033[0m"
